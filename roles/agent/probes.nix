# services.nixfleet-agent.healthChecks: what has to be well before a new system is
# confirmed, and while it runs.
lib:
let
  inherit (lib) mkOption types;

  seconds =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
    };

  probe =
    options:
    types.listOf (
      types.submodule {
        options = {
          name = mkOption {
            type = types.nonEmptyStr;
            example = "site";
            description = "Name of the probe, as it is shown in reports; no other probe of the host has it.";
          };
          intervalSeconds = seconds 30 "Seconds between two runs; at least 5.";
          gracePeriodSeconds = mkOption {
            type = types.ints.unsigned;
            default = 0;
            description = "Seconds after activation during which a failure does not count.";
          };
        }
        // options;
      }
    );
in
{
  mode = mkOption {
    type = types.enum [
      "disabled"
      "permissive"
      "enforce"
    ];
    default = "enforce";
    description = "`enforce`: every probe must pass; `permissive`: none may fail; `disabled`: probes are not run.";
  };
  http = mkOption {
    type = probe {
      url = mkOption {
        type = types.strMatching "https?://[^/].*";
        example = "http://127.0.0.1:80/health";
        description = "URL to get.";
      };
      expectStatus = mkOption {
        type = types.ints.between 100 599;
        default = 200;
        description = "Status that counts as success.";
      };
      timeoutSeconds = seconds 5 "Seconds after which a run has failed.";
    };
    default = [ ];
    description = "HTTP probes.";
  };
  tcp = mkOption {
    type = probe {
      host = mkOption {
        type = types.str;
        default = "127.0.0.1";
        description = "Address to connect to.";
      };
      port = mkOption {
        type = types.ints.between 1 65535;
        description = "Port to connect to.";
      };
      timeoutSeconds = seconds 5 "Seconds after which a run has failed.";
    };
    default = [ ];
    description = "TCP probes.";
  };
  exec = mkOption {
    type = probe {
      command = mkOption {
        type = types.nonEmptyListOf types.str;
        example = [ "/run/current-system/sw/bin/pg_isready" ];
        description = "Command and arguments; exit 0 is success.";
      };
      timeoutSeconds = seconds 10 "Seconds after which a run has failed.";
    };
    default = [ ];
    description = "Command probes.";
  };
  units = mkOption {
    type = probe {
      unit = mkOption {
        type = types.nonEmptyStr;
        example = "postgresql.service";
        description = "Unit that must be active; under launchd the label of a job.";
      };
      timeoutSeconds = seconds 5 "Seconds after which a run has failed.";
    };
    default = [ ];
    description = "Unit probes.";
  };
}
