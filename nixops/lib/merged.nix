# What mergeFleets gives is two things at once: the argument of mkFleet, as ours is used,
# and the fleet itself, as v1's is used. The mark tells mkFleet that the members of the
# fleet are there, and were not written by a person who took them for arguments.
let
  outputs = [
    "darwinConfigurations"
    "nixosConfigurations"
    "resolved"
    "warnings"
  ];
  mark = "nixfleet-merged";
in
{
  inherit outputs;

  # marked :: arguments -> fleet -> both
  marked =
    arguments: fleet:
    arguments
    // builtins.listToAttrs (
      map (name: {
        inherit name;
        value = fleet.${name};
      }) outputs
    )
    // {
      _type = mark;
    };

  # plain :: arguments, or what is marked -> arguments
  plain =
    args: if args._type or null == mark then builtins.removeAttrs args (outputs ++ [ "_type" ]) else args;
}
