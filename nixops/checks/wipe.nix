# The control plane is rebuilt from an empty disk: the fleet is seen again after one
# check-in, a used token stays used, and the next release goes out.
fleet:
{
  nodes = fleet.nodes // {
    web = {
      imports = [ fleet.nodes.web ];
      test.changes.next.environment.etc."nixfleet-test".text = "next";
    };
  };

  testScript =
    args:
    fleet.prelude args
    + ''
      first_release()

      with subtest("an empty disk"):
          cp.succeed(
              "systemctl stop nixfleet-control-plane.service",
              "rm -rf /var/lib/private/nixfleet-cp /var/lib/nixfleet-cp",
          )
          start_control_plane()
          fleet_says(".converged and .lastCheckinAt != null")

      with subtest("the agent did not mind"):
          web.succeed(f"test $(readlink -f /run/current-system) = {SYSTEMS['installed']}")
          web.succeed("test $(systemctl show -p NRestarts --value nixfleet-agent.service) = 0")

      with subtest("the next release"):
          release("next")
          runs("next")
    '';
}
