# A revoked host is refused from its next request on, and comes back with a new token
# only.
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

      with subtest("refused"):
          cp.succeed("nixfleet revoke web --reason 'disk was stolen'")
          web.wait_until_succeeds("journalctl -u nixfleet-agent --grep revoked", timeout=120)
          release("next")
          web.sleep(60)
          web.fail("test -e /etc/nixfleet-test")

      with subtest("also after the control plane lost its memory, once it is committed"):
          cp.succeed(
              """jq -n --arg now "$(date -u -d '+1 second' +%Y-%m-%dT%H:%M:%SZ)" """
              """'[{hostname: "web", notBefore: $now, reason: "disk was stolen"}]' > /tmp/revocations.json"""
          )
          release("next", "--revocations-file /tmp/revocations.json")
          cp.succeed(
              "systemctl stop nixfleet-control-plane.service",
              "rm -f /var/lib/private/nixfleet-cp/state.db*",
              "systemctl start nixfleet-control-plane.service",
          )
          cp.wait_for_open_port(8080)
          web.sleep(60)
          web.fail("test -e /etc/nixfleet-test")

      with subtest("back with a new token"):
          web.succeed("systemctl stop nixfleet-agent.service", "rm /var/lib/nixfleet/agent-cert.pem")
          enrol()
          runs("next")
    '';
}
