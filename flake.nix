{
  description = "tk-store: the Nix store without Nix";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      eachSystem = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      manifest = (lib.importTOML ./Cargo.toml).workspace.package;

      # Only what cargo reads, so that an edited README rebuilds nothing.
      source = lib.fileset.toSource {
        root = ./.;
        fileset = lib.fileset.unions [
          ./.cargo
          ./Cargo.toml
          ./Cargo.lock
          ./build.rs
          ./crates
          ./fuzz
          ./rustfmt.toml
          ./tests
          (lib.fileset.maybeMissing ./benches)
        ];
      };

      tk-store =
        pkgs:
        pkgs.rustPlatform.buildRustPackage {
          pname = "tk-store";
          inherit (manifest) version;
          src = source;
          cargoLock.lockFile = ./Cargo.lock;
          nativeBuildInputs = [ pkgs.pkg-config ];

          # The package is the command; the crates are checked below.
          cargoBuildFlags = [
            "--package"
            "tk-cli"
          ];
          # The tests of the crates need neither network nor real Nix.
          cargoTestFlags = [
            "--workspace"
            "--lib"
          ];

          meta = {
            description = "Read, hash, sign, check, copy and push Nix store paths without Nix";
            license = with lib.licenses; [
              mit
              asl20
            ];
            mainProgram = "tk-store";
            platforms = systems;
          };
        };

      # The same build with another cargo command in place of the tests.
      cargoCheck =
        pkgs: name: tool: command:
        (tk-store pkgs).overrideAttrs (old: {
          pname = "tk-store-${name}";
          nativeBuildInputs = old.nativeBuildInputs ++ [ tool ];
          buildPhase = ''
            runHook preBuild
            ${command}
            runHook postBuild
          '';
          doCheck = false;
          installPhase = "touch $out";
        });

      # The unit as NixOS itself makes it of the module, read by systemd.
      moduleCheck =
        pkgs:
        let
          agent = pkgs.writeShellScriptBin "tachikoma" "exit 0";
          machine = lib.nixosSystem {
            inherit (pkgs.stdenv.hostPlatform) system;
            modules = [
              self.nixosModules.default
              {
                boot.isContainer = true;
                system.stateVersion = lib.trivial.release;
                services.tachikoma = {
                  enable = true;
                  package = agent;
                  config.model = "large";
                  secrets.api-key = "/run/secrets/key";
                };
              }
            ];
          };
        in
        pkgs.runCommand "tachikoma-module" { nativeBuildInputs = [ pkgs.systemd ]; } ''
          cp ${machine.config.systemd.units."tachikoma.service".unit}/tachikoma.service .
          systemd-analyze verify --recursive-errors=no ./tachikoma.service
          systemd-analyze security --offline=true --threshold=30 ./tachikoma.service
          touch $out
        '';
    in
    {
      packages = eachSystem (pkgs: {
        default = tk-store pkgs;
        tk-store = tk-store pkgs;
        # Without a loader or libraries of its own: for machines without Nix.
        tk-store-static = tk-store pkgs.pkgsStatic;
      });

      overlays.default = final: _: { tk-store = tk-store final; };

      nixosModules.default = ./nix/module.nix;

      checks = eachSystem (pkgs: {
        package = tk-store pkgs;
        module = moduleCheck pkgs;
        format = cargoCheck pkgs "format" pkgs.rustfmt "cargo fmt --all --check";
        clippy =
          cargoCheck pkgs "clippy" pkgs.clippy
            "cargo clippy --offline --workspace --all-features -- -D warnings";
      });

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (tk-store pkgs) ];
          packages = [
            pkgs.clippy
            pkgs.rust-analyzer
            pkgs.rustfmt
            pkgs.shellcheck
          ];
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt);
    };
}
