# A system that fails is left again, is not tried anew, and never became the boot
# default. The next good one goes through.
fleet:
{
  nodes = fleet.nodes // {
    web = {
      imports = [ fleet.nodes.web ];
      test.changes = {
        # switch-to-configuration says 4.
        failing.systemd.services.nixfleet-test = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig.Type = "oneshot";
          script = "exit 1";
        };
        # The switch works; the probe says that the system does not.
        unhealthy.services.nixfleet-agent.healthChecks.tcp = [
          {
            name = "nobody-listens";
            port = 4711;
            intervalSeconds = 5;
          }
        ];
        good.environment.etc."nixfleet-test".text = "good";
      };
    };
  };

  testScript =
    args:
    fleet.prelude args
    + ''
      first_release()

      for name in ["failing", "unhealthy"]:
          with subtest(f"a system that is {name}"):
              release(name)
              fleet_says(f'.quarantinedClosure == "{base(name)}" or .rolloutState == "Failed" or .rolloutState == "Reverted"')
              web.wait_until_succeeds(f"test $(readlink -f /run/current-system) = {SYSTEMS['installed']}", timeout=600)
              web.succeed(f"test $(readlink -f /nix/var/nix/profiles/system) = {SYSTEMS['installed']}")
              web.wait_until_fails("test -e /var/lib/nixfleet-agent/journal.json", timeout=120)

              began = web.succeed("journalctl -u nixfleet-agent --grep 'switch started' | wc -l")
              web.sleep(60)
              web.succeed(f"test $(journalctl -u nixfleet-agent --grep 'switch started' | wc -l) = {began.strip()}")

      with subtest("the next good one"):
          release("good")
          runs("good")
          web.fail("systemctl is-failed nixfleet-test.service")
    '';
}
