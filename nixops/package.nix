# One executable for every role; the links pick the role by name.
{
  lib,
  buildGoModule,
  stdenv,
  static ? false,
  commit ? "unknown",
}:
buildGoModule {
  pname = "nixfleet";
  version = "0.1.0";

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../go.mod
      ../go.sum
      (lib.fileset.fileFilter (file: file.hasExt "go") ../.)
      ../pki
      ../store
      ../roles
      ../nixops
    ];
  };

  # The NAR hash of `go mod vendor`; CI computes it anew and fails when it is stale.
  vendorHash = lib.fileContents ./vendor-hash;

  subPackages = [ "." ];

  # SQLite is C; optimised for size it is a third of a megabyte smaller.
  env = {
    CGO_ENABLED = 1;
  }
  // lib.optionalAttrs static { CGO_CFLAGS = "-Os"; };

  # HTTP/2, which nothing here speaks, and the library's own pages of documentation are
  # two thirds of a megabyte.
  tags = [
    "sqlite_omit_load_extension"
    "nethttpomithttp2"
    "urfave_cli_no_docs"
  ]
  ++ lib.optionals static [ "netgo" "osusergo" ];
  ldflags = [
    "-s"
    "-w"
    "-X main.commit=${commit}"
  ]
  ++ lib.optionals static [
    "-linkmode external"
    "-extldflags -static"
  ];

  # The rest of the tests wants a checkout, Nix, root or a network, and runs in CI.
  checkPhase = ''
    runHook preCheck
    go test ./pki/... ./store/... ./nixops/fleet/... ./roles/protocol/... ./roles/rollout/...
    runHook postCheck
  '';

  postInstall = ''
    for role in nixfleet-agent nixfleet-control-plane nixfleet-release nixfleet-verify-artifact nixfleet-canonicalize; do
      ln -s nixfleet "$out/bin/$role"
    done
  '';

  meta = {
    description = "Keeps a fleet of NixOS machines at the state declared in one git repository";
    license = lib.licenses.asl20;
    mainProgram = "nixfleet";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
    broken = static && !stdenv.hostPlatform.isLinux;
  };
}
