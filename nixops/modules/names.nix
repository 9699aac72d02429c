# The names of all options that modules declare, by a lib of nothing but the
# functions that declarations call: so that documentation can be checked where there
# is not nixpkgs. A function that is missing here stops the evaluation.
modules:
let
  option = attrs: attrs // { _type = "option"; };
  type = sub: { inherit sub; };
  element = of: type { "*" = of.sub; };

  lib = {
    doRename = _: { };
    mkOption = option;
    mkEnableOption = _: option { };
    mkPackageOption =
      _: _: _:
      option { };
    literalExpression = text: text;
    optionalAttrs = cond: set: if cond then set else { };
    types = {
      addCheck = of: _: of;
      attrsOf = element;
      bool = type { };
      enum = _: type { };
      float = type { };
      int = type { };
      ints = {
        between = _: _: type { };
        positive = type { };
        unsigned = type { };
      };
      listOf = element;
      nonEmptyListOf = element;
      nonEmptyStr = type { };
      nullOr = of: of;
      path = type { };
      raw = type { };
      str = type { };
      strMatching = _: type { };
      submodule = m: type m.options;
    };
  };

  arguments = {
    inherit lib;
    config = throw "an option's declaration may not depend on the configuration";
    pkgs = { };
  };

  # With what a module imports; a module of another room has a chapter of its own.
  declared =
    file:
    let
      module = import file;
      m = if builtins.isFunction module then module arguments else module;
      own = builtins.filter (imported: builtins.isPath imported && dirOf imported == dirOf file) (m.imports or [ ]);
    in
    names "" (m.options or { }) ++ builtins.concatMap declared own;

  names =
    prefix: set:
    builtins.concatLists (
      builtins.attrValues (
        builtins.mapAttrs (
          key: value:
          let
            name = if prefix == "" then key else "${prefix}.${key}";
          in
          if value._type or null != "option" then
            names name value
          else if value.internal or false then
            [ ]
          else
            [ name ] ++ names name (value.type.sub or { })
        ) set
      )
    );
in
builtins.concatMap declared modules
