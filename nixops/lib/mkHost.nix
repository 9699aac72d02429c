# mkHost :: { nixosModules, darwinModules } -> arguments -> nixosSystem or darwinSystem
#
#   mkHost {
#     inherit nixpkgs;            # the caller's own, so that he decides what is built
#     name = "web-01";
#     system = "x86_64-linux";    # a *-darwin system takes nix-darwin as well
#     modules = [ ./web-01.nix ];
#   }
#
# An ordinary system with nixfleet's modules imported and the host's name set as a
# default; nothing else is imposed. The agent runs once the configuration says
# services.nixfleet-agent.enable = true.
{ nixosModules, darwinModules }:
{
  name,
  system,
  nixpkgs,
  nix-darwin ? null,
  modules ? [ ],
  specialArgs ? { },
}:
let
  isDarwin = builtins.match ".*-darwin" system != null;
  named =
    { lib, ... }:
    {
      networking.hostName = lib.mkDefault name;
      nixpkgs.hostPlatform = lib.mkDefault system;
    };
in
if !isDarwin then
  nixpkgs.lib.nixosSystem {
    inherit specialArgs;
    modules = [ named ] ++ nixosModules ++ modules;
  }
else if nix-darwin == null then
  throw "nixfleet: mkHost: host '${name}' is on ${system}; pass nix-darwin, for example mkHost { inherit nixpkgs nix-darwin; ... }"
else
  nix-darwin.lib.darwinSystem {
    inherit specialArgs;
    modules = [ named ] ++ darwinModules ++ modules;
  }
