# mkHost :: { nixosModules, darwinModules, nixpkgs, self } -> arguments -> nixosSystem or darwinSystem
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
#
# v1's arguments are taken as well:
#
#   hostName, platform   are name and system
#   stateVersion         a default of system.stateVersion; without it v1's "24.11", where
#                        hostName is given, and nothing where name is
#   hostSpec             values below config.hostSpec, where v1's modules read them.
#                        nixfleet itself reads hostSpec.hostName and acts on nothing else:
#                        users, keys and time zone that v1's own modules made of it are
#                        for a module of the fleet
#   extraInputs          part of the module argument `inputs`
#   isVm                 refused when it is true: there is no module for it here
#
# Without nixpkgs a host is built with the one that nixfleet itself is locked to.
flake:
{
  name ? null,
  system ? null,
  hostName ? null,
  platform ? null,
  nixpkgs ? flake.nixpkgs,
  nix-darwin ? extraInputs.nix-darwin or extraInputs.darwin or null,
  modules ? [ ],
  specialArgs ? { },
  stateVersion ? if hostName == null then null else "24.11",
  hostSpec ? { },
  extraInputs ? { },
  isVm ? false,
}:
let
  inherit (builtins) isString match;
  refuse = sentence: throw "nixfleet: mkHost: ${sentence}";

  # One value that has two names.
  either =
    ours: mine: theirs: its: example:
    if mine != null && its != null then
      refuse "${ours} and ${theirs} are two names of one argument; keep ${ours}"
    else if isString mine then
      mine
    else if isString its then
      its
    else
      refuse "${ours} is missing; write for example ${ours} = \"${example}\"";

  host = either "name" name "hostName" hostName "web-01";
  kind = either "system" system "platform" platform "x86_64-linux";
  isDarwin = match ".*-darwin" kind != null;

  # A name with dots is a host's name and its domain; the agent calls itself by all of it.
  parts = match "([^.]*)[.](.*)" host;
  named =
    { lib, ... }:
    {
      nixpkgs.hostPlatform = lib.mkDefault kind;
    }
    // (
      if parts == null || isDarwin then
        { networking.hostName = lib.mkDefault host; }
      else
        {
          networking.hostName = lib.mkDefault (builtins.elemAt parts 0);
          networking.domain = lib.mkDefault (builtins.elemAt parts 1);
          services.nixfleet-agent.machineId = lib.mkDefault host;
        }
    );

  # nix-darwin counts its versions otherwise.
  versioned =
    { lib, ... }:
    {
      system.stateVersion = lib.mkDefault stateVersion;
    };
  version = if stateVersion == null || isDarwin then [ ] else [ versioned ];

  # Only for a caller who writes v1's: a configuration of ours has no such option.
  spec = if hostName == null && hostSpec == { } then [ ] else [ (hostSpecModule { inherit host isDarwin hostSpec; }) ];
  hostSpecModule = import ./hostSpec.nix;

  args = {
    specialArgs =
      (
        if extraInputs == { } && hostName == null then
          { }
        else
          {
            inputs =
              extraInputs
              // {
                inherit nixpkgs;
                inherit (flake) self;
              };
          }
      )
      // specialArgs;
  };
in
if isVm then
  refuse (
    "isVm = true of host '${host}' has no meaning here; import a module for virtual machines, "
    + "such as nixpkgs' profiles/qemu-guest.nix"
  )
else if !(builtins.seq host isDarwin) then
  nixpkgs.lib.nixosSystem (
    args // { modules = [ named ] ++ version ++ spec ++ flake.nixosModules ++ modules; }
  )
else if nix-darwin == null then
  refuse "host '${host}' is on ${kind}; pass nix-darwin, for example mkHost { inherit nixpkgs nix-darwin; ... }"
else
  nix-darwin.lib.darwinSystem (
    args // { modules = [ named ] ++ spec ++ flake.darwinModules ++ modules; }
  )
