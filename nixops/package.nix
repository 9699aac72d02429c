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
      # The pages that docs/pages.go embeds.
      ../docs/formats.md
      ../docs/reasons.md
      ../docs/recovery.md
      ../docs/troubleshooting.md
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
  ''
  # The executable writes its own manual and completion, where the builder can run it.
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    "$out/bin/nixfleet" man --out "$out/share/man"
    mkdir -p "$out/share/bash-completion/completions" "$out/share/zsh/site-functions" \
      "$out/share/fish/vendor_completions.d"
    "$out/bin/nixfleet" completion bash > "$out/share/bash-completion/completions/nixfleet"
    "$out/bin/nixfleet" completion zsh > "$out/share/zsh/site-functions/_nixfleet"
    "$out/bin/nixfleet" completion fish > "$out/share/fish/vendor_completions.d/nixfleet.fish"
  '';

  meta = {
    description = "Keeps a fleet of NixOS machines at the state declared in one git repository";
    license = lib.licenses.asl20;
    mainProgram = "nixfleet";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
    broken = static && !stdenv.hostPlatform.isLinux;
  };
}
