# nixfleet.trust: the public keys that a machine of the fleet believes.
#
# Declared once and imported by every host, the control plane included. The roles'
# own modules write it to their trust.json; the cache keys also become keys that
# Nix itself asks of every path it substitutes. Public halves only: there is
# nothing here that the store may not show.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.nixfleet.trust;

  time = types.strMatching "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})";

  signingKey = types.submodule {
    options = {
      algorithm = mkOption {
        type = types.enum [
          "ed25519"
          "ecdsa-p256"
        ];
        default = "ed25519";
        description = "Signature algorithm of the key.";
      };
      public = mkOption {
        type = types.str;
        example = "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=";
        description = ''
          Public half, base64: the 32 bytes of an ed25519 key, or the 64 bytes X and Y
          of a P-256 key. `nixfleet keygen` prints it.
        '';
      };
    };
  };

  slot =
    what: keyType:
    {
      current = mkOption {
        type = types.nullOr keyType;
        default = null;
        description = "The key that signs ${what} now. It is tried first.";
      };
      previous = mkOption {
        type = types.nullOr keyType;
        default = null;
        description = "The key before it, believed for as long as it stands here: the grace window of a rotation.";
      };
      successor = mkOption {
        type = types.nullOr keyType;
        default = null;
        description = "The key that comes next, believed only before `retireAt`.";
      };
      retireAt = mkOption {
        type = types.nullOr time;
        default = null;
        example = "2027-01-01T00:00:00Z";
        description = "When the rotation to `successor` is due. Nothing is promoted by itself.";
      };
      rejectBefore = mkOption {
        type = types.nullOr time;
        default = null;
        example = "2026-11-01T00:00:00Z";
        description = ''
          The switch to throw after a key has leaked: whatever was signed before this
          time is refused, whichever key signed it.
        '';
      };
    };

  # The org root is written as its bare base64 half: it is ed25519 and nothing else.
  wrapped =
    key:
    if key == null || builtins.isAttrs key then
      key
    else
      {
        algorithm = "ed25519";
        public = key;
      };

  slotJSON = s: {
    current = wrapped s.current;
    previous = wrapped s.previous;
    successor = wrapped s.successor;
    inherit (s) retireAt rejectBefore;
  };

  # A key that was copied badly would be found out on the hosts, by all of them at once.
  wellFormed =
    key:
    builtins.match (
      {
        ed25519 = "[A-Za-z0-9+/]{43}=";
        ecdsa-p256 = "[A-Za-z0-9+/]{86}==";
      }
      .${key.algorithm}
    ) key.public != null;

  keyAssertions =
    name: s:
    map
      (member: {
        assertion = s.${member} == null || wellFormed (wrapped s.${member});
        message = "nixfleet.trust.${name}.${member} is not the base64 of an ${s.${member}.algorithm or "ed25519"} key; take the line that 'nixfleet keygen' or 'nixfleet derive-pubkey' printed.";
      })
      [
        "current"
        "previous"
        "successor"
      ];

  # By their names: what was put here may be the private half.
  badCacheKeys = map (key: "'${lib.substring 0 24 (lib.head (lib.splitString ":" key))}…'") (
    lib.filter (key: builtins.match "[^: ]+:[A-Za-z0-9+/]{43}=" key == null) cfg.cacheKeys
  );

  # A text that is not a certificate keeps agents and control plane from starting.
  isCertificate = lib.hasInfix "-----BEGIN CERTIFICATE-----";

  slotAssertions = name: s: keyAssertions name s ++ [
    {
      assertion = (s.successor == null) == (s.retireAt == null);
      message = "nixfleet.trust.${name}: successor and retireAt stand together; set both or neither.";
    }
    {
      assertion = s.previous == null || s.current != null;
      message = "nixfleet.trust.${name}: previous is set and current is not; move the key to current, or set current to its successor.";
    }
  ];
in
{
  options.nixfleet.trust = {
    ciReleaseKey = slot "releases" signingKey;
    orgRootKey = slot "bootstrap tokens" types.str;

    cacheKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "cache.example.com-1:0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=" ];
      description = ''
        Public keys of the binary caches that may serve the fleet's closures, in Nix's own
        form. They are added to {option}`nix.settings.trusted-public-keys`.
      '';
    };
    rootCAPem = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Certificate of the fleet root, PEM.";
    };
    issuanceCAPems = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Certificates of the issuing CAs, PEM.";
    };

    json = mkOption {
      type = types.str;
      internal = true;
      readOnly = true;
      description = "The trust.json of all this.";
    };
  };

  config = {
    # Both spellings of the PEM members are written, since readers of either exist.
    nixfleet.trust.json = builtins.toJSON {
      schemaVersion = 1;
      ciReleaseKey = slotJSON cfg.ciReleaseKey;
      orgRootKey = if lib.all (v: v == null) (lib.attrValues cfg.orgRootKey) then null else slotJSON cfg.orgRootKey;
      inherit (cfg) cacheKeys;
      rootCaPem = cfg.rootCAPem;
      rootCAPem = cfg.rootCAPem;
      issuanceCaPems = cfg.issuanceCAPems;
      issuanceCAPems = cfg.issuanceCAPems;
    };

    nix.settings.trusted-public-keys = cfg.cacheKeys;

    assertions =
      slotAssertions "ciReleaseKey" cfg.ciReleaseKey
      ++ slotAssertions "orgRootKey" cfg.orgRootKey
      ++ [
        {
          assertion = cfg.rootCAPem == null || isCertificate cfg.rootCAPem;
          message = "nixfleet.trust.rootCAPem is not a certificate in PEM; give the text of fleet-root.cert.pem, for example with builtins.readFile.";
        }
        {
          assertion = lib.all isCertificate cfg.issuanceCAPems;
          message = "nixfleet.trust.issuanceCAPems holds a text that is not a certificate in PEM; give the text of issuing-ca.cert.pem, for example with builtins.readFile.";
        }
        {
          assertion = badCacheKeys == [ ];
          message = "nixfleet.trust.cacheKeys: ${lib.concatStringsSep ", " badCacheKeys} is not a public key of a cache, NAME:BASE64, and Nix would stop working; take the line that 'nixfleet keygen' printed.";
        }
      ];
  };
}
