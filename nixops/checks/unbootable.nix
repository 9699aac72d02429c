# A kernel that cannot boot: its system is staged for one boot only, so that the
# machine comes back by itself to the system that it left.
fleet:
{
  nodes = fleet.nodes // {
    web = {
      imports = [ fleet.nodes.web ];
      services.nixfleet-agent = {
        deferOn = [ "kernel-params" ];
        rebootPolicy.mode = "immediate";
      };
      # One that panics does not wait for a person.
      boot.kernelParams = [ "panic=1" ];
      test.changes = {
        # There is no init to run: the kernel panics before any of NixOS begins.
        unbootable.boot.kernelParams = [
          "rdinit=/nonexistent"
          "root=/dev/nonexistent"
        ];
        bootable.boot.kernelParams = [ "nixfleet.test=1" ];
      };
    };
  };

  testScript =
    args:
    fleet.prelude args
    + ''
      # Without this a reboot would end the machine.
      web.shutdown()
      web.start(allow_reboot=True)
      first_release()
      booted = web.succeed("cat /proc/sys/kernel/random/boot_id").strip()

      with subtest("a kernel that does not boot"):
          release("unbootable")
          # Down, through the panic, and up again.
          web.connected = False
          web.wait_until_succeeds(
              f"systemctl is-active nixfleet-agent.service && test $(cat /proc/sys/kernel/random/boot_id) != {booted}", timeout=600
          )
          web.succeed(f"test $(readlink -f /run/current-system) = {SYSTEMS['installed']}")
          web.succeed("! grep -q rdinit=/nonexistent /proc/cmdline")
          fleet_says(f'.quarantinedClosure == "{base("unbootable")}" or .rolloutState == "Failed" or .rolloutState == "Reverted"')

      with subtest("one that does"):
          booted = web.succeed("cat /proc/sys/kernel/random/boot_id").strip()
          release("bootable")
          web.connected = False
          web.wait_until_succeeds(f"test $(cat /proc/sys/kernel/random/boot_id) != {booted}", timeout=600)
          runs("bootable")
          web.succeed("grep -q nixfleet.test=1 /proc/cmdline")
    '';
}
