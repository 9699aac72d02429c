# What a control plane must not be configured as, each with the fix in its text.
{
  config,
  lib,
  cfg, # services.nixfleet-control-plane
  credentials, # files by the names of their credentials
  ownTrust, # trust.json is generated
  tpm, # the issuing CA lives in the TPM
}:
let
  # Certificates are public; all else of it is not.
  secretFiles = lib.attrValues (
    removeAttrs credentials [
      "tls-cert"
      "client-ca"
      "fleet-ca-cert"
    ]
  );

  # URLs become part of the unit. Over ssh the name before the @ is not a secret.
  urls = lib.filter (url: url != null) (
    [
      cfg.source.url
      cfg.closureUpstream
      cfg.notify.webhook.url
      cfg.notify.alertmanager.url
      cfg.notify.mail.server
      cfg.rolloutsSource.artifactUrlTemplate
      cfg.rolloutsSource.signatureUrlTemplate
    ]
    ++ lib.concatMap (s: [ s.artifactUrl s.signatureUrl ]) [
      cfg.channelRefsSource
      cfg.revocationsSource
      cfg.bootstrapNoncesSource
    ]
  );
  holdsSecret =
    url:
    lib.any (pattern: builtins.match pattern url != null) [
      "(git[+])?https?://[^/]*@.*"
      "[a-z0-9+.-]+://[^/@]*:[^/@]*@.*"
      ".*[?&][a-z_]*token=.*"
    ];

  # Whatever the names of secrets, of the files behind them and of files in /etc let
  # one see of the organisation's root key. Its public half may lie anywhere.
  namesOf = lib.mapAttrsToList (
    name: secret:
    [ name ]
    ++ map (file: baseNameOf (toString file)) (
      lib.filter (file: file != null) [
        (secret.file or null)
        (secret.sopsFile or null)
        (secret.key or null)
      ]
    )
  );
  secretNames = lib.concatLists (
    namesOf ((config.age or { }).secrets or { }) ++ namesOf ((config.sops or { }).secrets or { })
  );
  isOrgRoot =
    name:
    lib.hasInfix "orgroot" (lib.replaceStrings [ "-" "_" "." ] [ "" "" "" ] (lib.toLower name))
    && !(lib.hasSuffix ".pub" name);
  orgRootsHere = lib.unique (lib.filter isOrgRoot (secretNames ++ lib.attrNames config.environment.etc));
in
[
  {
    assertion = cfg.tls.cert != null && cfg.tls.key != null;
    message = "services.nixfleet-control-plane.tls.cert and .key are needed; 'nixfleet keygen' makes both.";
  }
  {
    assertion = orgRootsHere == [ ];
    message = "The private half of the organisation's root key is among the secrets of the control-plane host (${lib.concatStringsSep ", " orgRootsHere}). Take this host out of its recipients: whoever holds the control plane could admit hosts of his own.";
  }
  {
    assertion = ((config.nixfleet.operator or { }).orgRootKeyFile or null) == null;
    message = "The private half of the organisation's root key is on the control-plane host. Unset nixfleet.operator.orgRootKeyFile on this host and keep the key with the operators: whoever holds the control plane could admit hosts of his own.";
  }
  {
    assertion = lib.all (file: !(lib.hasPrefix builtins.storeDir file)) secretFiles;
    message = "services.nixfleet-control-plane: a key or token file lies in the Nix store, where every user reads it; give a path at run time, such as one of agenix or sops-nix.";
  }
  {
    assertion = !(lib.any holdsSecret urls);
    message = "services.nixfleet-control-plane: a URL holds a password or token, which every user reads in the Nix store; write it into a file and name that as tokenFile.";
  }
  {
    assertion = config.nixfleet.trust.ciReleaseKey.current != null || !ownTrust;
    message = "services.nixfleet-control-plane trusts nobody: set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed, or name a trustFile of your own.";
  }
  {
    assertion = lib.all (file: file == null || lib.hasPrefix "/var/lib/nixfleet-cp/" file) [
      cfg.dbPath
      cfg.auditLogPath
    ];
    message = "services.nixfleet-control-plane: dbPath and auditLogPath must lie in /var/lib/nixfleet-cp, the only directory that the service can write.";
  }
  {
    assertion = cfg.dbPath != null || cfg.revocationsSource.artifactUrl == null;
    message = "services.nixfleet-control-plane.revocationsSource needs dbPath, for example \"/var/lib/nixfleet-cp/state.db\".";
  }
  {
    assertion = lib.all (s: (s.artifactUrl == null) == (s.signatureUrl == null)) [
      cfg.channelRefsSource
      cfg.revocationsSource
      cfg.bootstrapNoncesSource
    ];
    message = "services.nixfleet-control-plane: artifactUrl and signatureUrl of a source stand together; set both or neither.";
  }
  {
    assertion =
      let
        templates = [
          cfg.rolloutsSource.artifactUrlTemplate
          cfg.rolloutsSource.signatureUrlTemplate
        ];
      in
      templates == [ null null ] || lib.all (t: t != null && lib.hasInfix "{rolloutId}" t) templates;
    message = "services.nixfleet-control-plane.rolloutsSource: artifactUrlTemplate and signatureUrlTemplate stand together, both with {rolloutId} in them; set both or neither.";
  }
  {
    assertion =
      !cfg.strict
      ||
        cfg.tls.clientCa != null
        && (
          cfg.source.url != null
          || cfg.revocationsSource.artifactUrl != null && cfg.bootstrapNoncesSource.artifactUrl != null
        );
    message = "services.nixfleet-control-plane.strict needs tls.clientCa, and source.url or the URLs of revocationsSource and bootstrapNoncesSource.";
  }
  {
    assertion = (cfg.tpmCaPubkeyRaw == null) == (cfg.tpmCaSignWrapper == null);
    message = "services.nixfleet-control-plane: tpmCaPubkeyRaw and tpmCaSignWrapper stand together; set both or neither.";
  }
  {
    assertion = (cfg.notify.webhook.url == null) == (cfg.notify.webhook.secretFile == null);
    message = "services.nixfleet-control-plane.notify.webhook: url and secretFile stand together; set both or neither.";
  }
  {
    assertion =
      (cfg.notify.mail.server == null) == (cfg.notify.mail.from == null)
      && (cfg.notify.mail.server == null) == (cfg.notify.mail.to == [ ]);
    message = "services.nixfleet-control-plane.notify.mail: server, from and to stand together; set all or none.";
  }
  {
    assertion = !tpm || config.users.groups ? tss;
    message = "services.nixfleet-control-plane.tpmCaSignWrapper needs the group tss, which may use the TPM; set security.tpm2.enable = true.";
  }
]
