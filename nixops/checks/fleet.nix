# The fleet of the VM tests: a control plane `cp` that also plays forge, CI and
# cache, and one host `web`. What a VM cannot do without a network is done before:
# every system that the host is ever told to run is built with the test.
{
  pkgs,
  nixosModule,
  mkFleet,
}:
let
  inherit (pkgs) lib;

  # Throw-away keys, of seeds that are one byte repeated: what closures contain has to
  # be known before a machine runs. The CAs are made by the machines.
  keys = {
    release = pkgs.writeText "release.key" (lib.concatStrings (lib.genList (_: "11") 32));
    orgRoot = pkgs.writeText "org-root.key" (lib.concatStrings (lib.genList (_: "22") 32));
    cache = pkgs.writeText "cache.key" "cache.fleet.test-1:MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMXy3n7K0Eg8rHsZeQZjW4Iso6BP+sB5KQAg5uF4YCAzg==";
  };
  sshKeys = import (pkgs.path + "/nixos/tests/ssh-keys.nix") pkgs;

  trust.nixfleet.trust = {
    ciReleaseKey.current.public = "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=";
    orgRootKey.current = "oJql9HpnWYAv+VX43C0qFKXJnSO+l/hkEn/5ODRVpPA=";
    cacheKeys = [ "cache.fleet.test-1:F8t5+ytBIPKx7GXkGY1uCLKOgT/rAeSkAIObheGAgM4=" ];
  };

  declaration =
    revocations:
    mkFleet {
      hosts.web = {
        system = pkgs.stdenv.hostPlatform.system;
        channel = "stable";
        pubkey = lib.trim sshKeys.snakeOilEd25519PublicKey;
      };
      channels.stable.rolloutPolicy = "now";
      rolloutPolicies.now.onHealthFailure = "halt";
      inherit revocations;
    };

  # The control plane reads releases from a directory. /srv/cache is the binary cache.
  cp =
    { nodes, ... }:
    {
      imports = [
        nixosModule
        trust
      ];

      services.nixfleet-control-plane = {
        enable = true;
        openFirewall = true;
        agentCnSuffix = "fleet.test";
        source.url = "/srv/fleet/releases";
        confirmDeadlineSecs = 120;
        tls.cert = "/keys/server.cert.pem";
        tls.key = "/keys/server.key.pem";
        tls.clientCa = "/keys/client-ca.pem";
        fleetCaCert = "/keys/issuing-ca.cert.pem";
        fleetCaKey = "/keys/issuing-ca.key.pem";
      };
      # Its certificates do not exist until the test has made them.
      systemd.services.nixfleet-control-plane.wantedBy = lib.mkForce [ ];

      services.nginx = {
        enable = true;
        virtualHosts.cache = {
          default = true;
          root = "/srv/cache";
        };
      };
      networking.firewall.allowedTCPPorts = [ 80 ];
      systemd.tmpfiles.rules = [ "d /srv/cache 0755 root root -" ];

      environment.systemPackages = [ pkgs.jq ];
      environment.variables = {
        NIXFLEET_CP_URL = "https://cp:8080";
        NIXFLEET_CA_CERT = "/keys/fleet-root.cert.pem";
        NIXFLEET_CLIENT_CERT = "/keys/operator.pem";
        NIXFLEET_CLIENT_KEY = "/keys/operator.key";
      };

      nix.settings.experimental-features = [
        "nix-command"
        "flakes"
      ];
      virtualisation = {
        writableStore = true;
        diskSize = 8192;
        memorySize = 2048;
        # In its store before it releases them, as on a build machine.
        additionalPaths = [ nodes.web.system.build.toplevel ] ++ lib.attrValues nodes.web.test.systems;
      };
    };

  # A host with a boot loader. What it may be told to run besides is in test.systems.
  web =
    {
      config,
      extendModules,
      ...
    }:
    {
      imports = [
        nixosModule
        trust
      ];

      options.test = {
        changes = lib.mkOption {
          type = lib.types.attrsOf lib.types.deferredModule;
          default = { };
          description = "Changes to this system, by the names that the tests give them.";
        };
        systems = lib.mkOption {
          type = lib.types.attrsOf lib.types.package;
          readOnly = true;
          description = "The system with each of the changes.";
        };
      };

      config = {
        test.systems = lib.mapAttrs (
          _: change: (extendModules { modules = [ change ]; }).config.system.build.toplevel
        ) config.test.changes;

        services.nixfleet-agent = {
          enable = true;
          controlPlaneUrl = "https://cp:8080";
          pollInterval = 5;
          tls.caCert = "/var/lib/nixfleet/fleet-root.cert.pem";
          bootstrapTokenFile = "/var/lib/nixfleet/bootstrap-token";
        };
        # It has neither CA nor token until the test brings both; a system that is
        # switched to starts it in the usual way.
        systemd.services.nixfleet-agent.unitConfig.ConditionPathExists = "/var/lib/nixfleet/fleet-root.cert.pem";

        environment.etc."ssh/ssh_host_ed25519_key" = {
          mode = "0600";
          source = sshKeys.snakeOilEd25519PrivateKey;
        };

        # Tests run without any other cache.
        nix.settings.substituters = lib.mkOverride 10 [ "http://cp" ];

        system.switch.enable = true;
        boot.loader = {
          systemd-boot.enable = true;
          efi.canTouchEfiVariables = true;
          timeout = 0;
        };
        virtualisation = {
          useBootLoader = true;
          useEFIBoot = true;
          # What it fetches outlives a reboot.
          writableStore = true;
          writableStoreUseTmpfs = false;
          diskSize = 8192;
          memorySize = 2048;
        };
      };
    };

  # What every test script begins with. Python, for the test driver.
  prelude =
    { nodes, ... }:
    let
      files = {
        fleet = pkgs.writeText "fleet.json" (builtins.toJSON (declaration [ ]).resolved);
        trust = pkgs.writeText "trust.json" nodes.web.nixfleet.trust.json;
      };
      systems = nodes.web.test.systems // {
        installed = nodes.web.system.build.toplevel;
      };
    in
    ''
      import json
      import shlex

      SYSTEMS = json.loads('${builtins.toJSON (lib.mapAttrs (_: system: "${system}") systems)}')


      def base(name):
          return SYSTEMS[name].removeprefix("/nix/store/")


      def make_keys():
          """The keys of the operators, as `nixfleet keygen` makes them."""
          cp.wait_for_unit("multi-user.target")
          cp.succeed(
              "nixfleet keygen fleet-ca --dir /keys --suffix fleet.test",
              "nixfleet keygen server --dir /keys --server cp --root-cert /keys/fleet-root.cert.pem --root-key /keys/fleet-root.key.pem",
              "nixfleet mint-operator-cert --root-cert /keys/fleet-root.cert.pem --root-key /keys/fleet-root.key.pem"
              " --cn operator-test --output-cert /keys/operator.pem --output-key /keys/operator.key",
              # The store is open to all, which nixfleet refuses of a key that signs.
              "install -m 0600 ${keys.release} /keys/release.key",
              "install -m 0600 ${keys.orgRoot} /keys/org-root.key",
              "install -m 0600 ${keys.cache} /keys/cache.key",
          )


      def release(name, *more):
          """What CI does, for a system that is built already."""
          cp.succeed(
              "mkdir -p /srv/fleet",
              f"printf %s {shlex.quote(json.dumps({'web': SYSTEMS[name]}))} > /tmp/closures.json",
              "nixfleet release --fleet-file ${files.fleet} --closures /tmp/closures.json --release-dir /srv/fleet/releases"
              " --sign-key /keys/release.key --trust-file ${files.trust} --confirm-window 2m"
              " --copy-to 'file:///srv/cache?compression=none' --cache-key /keys/cache.key " + " ".join(more),
          )


      def start_control_plane():
          cp.succeed("systemctl start nixfleet-control-plane.service")
          cp.wait_for_unit("nixfleet-control-plane.service")
          cp.wait_for_open_port(8080)


      def enrol():
          """Brings the host what nixos-anywhere would have, and lets it enrol."""
          token = cp.succeed(
              "nixfleet mint-token --hostname web --fleet-resolved /srv/fleet/releases/fleet.resolved.json"
              " --trust-file ${files.trust} --org-root-key /keys/org-root.key"
          )
          web.wait_for_unit("multi-user.target")
          ca = cp.succeed("cat /keys/fleet-root.cert.pem")
          web.succeed(
              "install -d -m 0700 /var/lib/nixfleet",
              f"umask 077; printf %s {shlex.quote(token)} > /var/lib/nixfleet/bootstrap-token",
              f"printf %s {shlex.quote(ca)} > /var/lib/nixfleet/fleet-root.cert.pem",
              "systemctl start nixfleet-agent.service",
          )
          web.wait_for_file("/var/lib/nixfleet/agent-cert.pem")


      def fleet_says(condition):
          """Waits until the control plane's view of the host fulfils a condition of jq."""
          cp.wait_until_succeeds(
              "nixfleet status --json | jq -e " + shlex.quote(f'.hosts[] | select(.hostname == "web") | {condition}'), timeout=600
          )


      def runs(name):
          """The host runs a system, will boot it, and has confirmed it."""
          web.wait_until_succeeds(f"test $(readlink -f /run/current-system) = {SYSTEMS[name]}", timeout=600)
          web.wait_until_succeeds(f"test $(readlink -f /nix/var/nix/profiles/system) = {SYSTEMS[name]}", timeout=600)
          fleet_says(f'.currentClosureHash == "{base(name)}" and .converged')


      def first_release():
          make_keys()
          release("installed")
          start_control_plane()
          enrol()
          runs("installed")


      start_all()
    '';
in
{
  inherit pkgs declaration prelude;
  nodes = { inherit cp web; };
}
