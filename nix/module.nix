# The NixOS module of Tachikoma: an agent that runs beside the store.
#
#   services.tachikoma = {
#     enable = true;
#     package = inputs.tachikoma.packages.${system}.default;
#     config.model = "…";
#     secrets.api-key = "/run/secrets/tachikoma-api-key";
#   };
#
# `config` becomes a JSON file in the store, which every user can read; TACHIKOMA_CONFIG names it. What nobody
# else may read goes to `secrets`: systemd hands these files over in $CREDENTIALS_DIRECTORY, and only their
# places are in the store.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkEnableOption
    mkIf
    mkOption
    types
    ;
  cfg = config.services.tachikoma;
  format = pkgs.formats.json { };

  matches = pattern: text: builtins.match pattern text != null;

  # Places of texts and files below `value` whose names say that they are secrets. What has an outPath is a text,
  # as in JSON: to look into it would never end.
  secretsIn =
    place: value:
    if value ? outPath || value ? __toString || builtins.isPath value then
      whereSecret place
    else if builtins.isAttrs value then
      builtins.concatLists (lib.mapAttrsToList (name: secretsIn (place ++ [ name ])) value)
    else if builtins.isList value then
      builtins.concatLists (map (secretsIn place) value)
    else if builtins.isString value && value != "" then
      whereSecret place
    else
      [ ];
  whereSecret =
    place: if isSecret (lib.last ([ "" ] ++ place)) then [ (lib.concatStringsSep "." place) ] else [ ];
  isSecret = name: matches secretWord (lib.toLower name) || matches ".*KEY" name;
  secretWord = ".*(pass(word|wd|phrase)|secret|token|credential|(api|access|secret|private|sign(ing)?|encryption)[_-]?key)s?";

  secretAssertions =
    name: place:
    let
      option = "services.tachikoma.secrets.${name}";
    in
    [
      {
        assertion = matches "[A-Za-z0-9_][A-Za-z0-9_.-]*" name;
        message = "${option} has a name that systemd does not take for a credential: use letters, digits, '_', '-' and '.'.";
      }
      {
        assertion = matches "(/[A-Za-z0-9_.+@-]+)+" place && !matches ".*/\\.\\.?(/.*)?" place;
        message = "${option} is '${place}', which is not the absolute place of a file, such as /run/secrets/${name}.";
      }
      {
        assertion = !(lib.hasPrefix "${builtins.storeDir}/" place);
        message = "${option} is '${place}', which every user can read: keep the file outside of the store, such as in /run/secrets.";
      }
    ];
in
{
  options.services.tachikoma = {
    enable = mkEnableOption "Tachikoma, an agent that works beside the Nix store";

    package = mkOption {
      type = types.nullOr types.package;
      default = null;
      description = "The package that has bin/tachikoma.";
    };

    config = mkOption {
      type = format.type;
      default = { };
      example = {
        model = "large";
        limits.builds = 4;
      };
      description = ''
        Settings of the agent, any attributes. They become a JSON file in the store, which every user
        can read: what is secret goes to {option}`services.tachikoma.secrets`.
      '';
    };

    secrets = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        api-key = "/run/secrets/tachikoma-api-key";
      };
      description = ''
        Files that the agent alone may read, by the names that they get in `$CREDENTIALS_DIRECTORY`.
        They are read by systemd when the unit starts; only their places are in the store.
      '';
    };

    stateDirectory = mkOption {
      type = types.str;
      default = "tachikoma";
      description = "The folder below /var/lib that the agent writes to, and starts in.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.package != null;
        message = "services.tachikoma.package is not set: name the package that has bin/tachikoma.";
      }
      {
        assertion = matches "[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*" cfg.stateDirectory;
        message = "services.tachikoma.stateDirectory is '${cfg.stateDirectory}', which is not the name of a folder below /var/lib.";
      }
    ]
    ++ map (place: {
      assertion = false;
      message = "services.tachikoma.config.${place} would be readable for every user in the store: name a file with it in services.tachikoma.secrets.";
    }) (secretsIn [ ] cfg.config)
    ++ builtins.concatLists (lib.mapAttrsToList secretAssertions cfg.secrets);

    systemd.services.tachikoma = {
      description = "Tachikoma agent";
      after = [ "network.target" ];
      wantedBy = [ "multi-user.target" ];
      environment.TACHIKOMA_CONFIG = "${format.generate "tachikoma.json" cfg.config}";
      serviceConfig = {
        ExecStart = "${lib.optionalString (cfg.package != null) cfg.package}/bin/tachikoma agent";
        Restart = "always";
        RestartSec = 5;

        DynamicUser = true;
        StateDirectory = cfg.stateDirectory;
        StateDirectoryMode = "0700";
        WorkingDirectory = "%S/${cfg.stateDirectory}";
        LoadCredential = lib.mapAttrsToList (name: place: "${name}:${place}") cfg.secrets;

        # It asks servers and the daemon of Nix, and needs nothing else of the machine.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        AmbientCapabilities = "";
        CapabilityBoundingSet = "";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
        UMask = "0077";
      };
    };
  };
}
