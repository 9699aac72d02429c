# A new system is fetched, activated, proven and made the boot default; so is one that
# changes the agent itself. A reboot leads into it.
fleet:
{
  nodes = fleet.nodes // {
    web = {
      imports = [ fleet.nodes.web ];
      test.changes = {
        next.environment.etc."nixfleet-test".text = "next";
        # The unit that drives the switch is restarted by it.
        agent = {
          environment.etc."nixfleet-test".text = "agent";
          services.nixfleet-agent.logLevel = "debug";
        };
      };
    };
  };

  testScript =
    args:
    fleet.prelude args
    + ''
      first_release()

      with subtest("a new system"):
          release("next")
          runs("next")
          web.succeed("grep -qx next /etc/nixfleet-test")
          web.succeed("bootctl list | grep -q .")

      with subtest("a system that restarts the agent"):
          release("agent")
          runs("agent")
          web.succeed("systemctl show -p ExecStart nixfleet-agent.service | grep -q log-level=debug")
          web.fail("systemctl is-failed nixfleet-agent.service")

      with subtest("it is what boots"):
          web.shutdown()
          web.start()
          web.wait_for_unit("nixfleet-agent.service")
          runs("agent")

      with subtest("a changed credential restarts the control plane"):
          before = cp.succeed("systemctl show -p ExecMainStartTimestampMonotonic --value nixfleet-control-plane.service")
          cp.succeed(
              "nixfleet keygen server --force --dir /keys --server cp"
              " --root-cert /keys/fleet-root.cert.pem --root-key /keys/fleet-root.key.pem"
          )
          cp.wait_until_succeeds(
              f"test $(systemctl show -p ExecMainStartTimestampMonotonic --value nixfleet-control-plane.service) != {before.strip()}",
              timeout=120,
          )
          cp.wait_for_unit("nixfleet-control-plane.service")
          fleet_says(".converged")
    '';
}
