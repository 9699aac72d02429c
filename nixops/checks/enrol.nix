# A host enrols once with its token, is known, and cannot enrol by that token again.
fleet:
{
  inherit (fleet) nodes;

  testScript =
    args:
    fleet.prelude args
    + ''
      first_release()

      with subtest("the certificate is the host's own, and private"):
          web.succeed("test $(stat -c %a /var/lib/nixfleet) = 700")
          web.succeed("test $(stat -c %a /var/lib/nixfleet-agent) = 700")

      with subtest("the token is used up"):
          web.succeed(
              "systemctl stop nixfleet-agent.service",
              "mv /var/lib/nixfleet/agent-cert.pem /tmp/",
              "systemctl start nixfleet-agent.service",
          )
          web.sleep(60)
          web.fail("test -e /var/lib/nixfleet/agent-cert.pem")

      with subtest("its certificate still counts"):
          web.succeed(
              "systemctl stop nixfleet-agent.service",
              "mv /tmp/agent-cert.pem /var/lib/nixfleet/",
              "systemctl start nixfleet-agent.service",
          )
          runs("installed")

      with subtest("the units stand as systemd reads them"):
          web.succeed("systemd-analyze verify --man=no nixfleet-agent.service nixfleet-guard.service")
          cp.succeed("systemd-analyze security --threshold=20 nixfleet-control-plane.service")
    '';
}
