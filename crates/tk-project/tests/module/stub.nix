# A stub of what nix/module.nix takes of nixpkgs' lib, written for the tests: it has the options, types and
# conditions that one module uses, and nothing of how many modules are merged.
#
# With `realLib` the module goes through the evalModules of that library instead; the rest of NixOS is a stub
# then, too.
{
  settings,
  package ? null,
  realLib ? null,
}:
let
  type = name: check: { inherit name check; };
  stubTypes = rec {
    bool = type "boolean" builtins.isBool;
    str = type "string" builtins.isString;
    package = type "package" (value: value ? outPath);
    nullOr = of: type "null or ${of.name}" (value: value == null || of.check value);
    attrsOf =
      of:
      type "attribute set of ${of.name}" (
        value: builtins.isAttrs value && builtins.all of.check (builtins.attrValues value)
      );
    json = type "JSON value" (value: !(builtins.isFunction value));
  };
  stubLib = rec {
    types = stubTypes;
    mkOption = option: option // { isOption = true; };
    mkEnableOption =
      what:
      mkOption {
        type = types.bool;
        default = false;
        description = what;
      };
    mkIf = condition: content: {
      isIf = true;
      inherit condition content;
    };
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    concatStringsSep = builtins.concatStringsSep;
    optionalString = condition: text: if condition then text else "";
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    toLower = builtins.replaceStrings (letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (
      letters "abcdefghijklmnopqrstuvwxyz"
    );
    letters =
      text: builtins.genList (at: builtins.substring at 1 text) (builtins.stringLength text);
    last = list: builtins.elemAt list (builtins.length list - 1);
  };

  lib = if realLib == null then stubLib else import realLib;
  pkgs = {
    formats.json = _: {
      type = if realLib == null then stubTypes.json else lib.types.attrsOf lib.types.anything;
      generate = name: value: builtins.toFile name (builtins.toJSON value);
    };
  };
  given = settings // (if package == null then { } else { inherit package; });

  # The values of `options`, as `given` has them.
  valuesOf =
    place: options:
    let
      own = builtins.mapAttrs (
        name: option:
        let
          value = given.${name} or option.default;
        in
        if option.type.check value then
          value
        else
          throw "A definition for option `${place}.${name}' is not of type `${option.type.name}'."
      ) options;
      unknown = builtins.filter (name: !(options ? ${name})) (builtins.attrNames given);
    in
    if unknown == [ ] then
      own
    else
      throw "The option `${place}.${builtins.head unknown}' does not exist.";

  byStub =
    let
      module = import ../../../../nix/module.nix {
        inherit lib pkgs;
        config.services.tachikoma = values;
      };
      values = valuesOf "services.tachikoma" module.options.services.tachikoma;
    in
    if module.config.condition then
      {
        inherit (module.config.content) assertions;
        services = module.config.content.systemd.services;
      }
    else
      {
        assertions = [ ];
        services = { };
      };

  byRealLib =
    let
      evaluated =
        (lib.evalModules {
          specialArgs = { inherit pkgs; };
          modules = [
            ../../../../nix/module.nix
            { services.tachikoma = given; }
            {
              options.assertions = lib.mkOption {
                type = lib.types.listOf lib.types.unspecified;
                default = [ ];
              };
              options.systemd.services = lib.mkOption {
                type = lib.types.attrsOf lib.types.anything;
                default = { };
              };
            }
          ];
        }).config;
    in
    {
      inherit (evaluated) assertions;
      inherit (evaluated.systemd) services;
    };

  result = if realLib == null then byStub else byRealLib;
  failed = builtins.filter (one: !one.assertion) result.assertions;
in
{
  failed = map (one: one.message) failed;
  # As NixOS: nothing is made where an assertion fails.
  services = if failed == [ ] then result.services else { };
}
