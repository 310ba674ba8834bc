# tk-store's library for direnv, as 'tk-store direnv hook' prints it. direnv reads it from
# ~/.config/direnv/lib/tk-store.sh; write it there anew after an update of tk-store.

# use tk-store [REF] [OPTION...]
#
# Enters the environment of a flake (default: .), or with -f FILE of a file, as 'tk-store shell' does:
# without nix, unless something changed that it depends on. Its shellHook runs if it was allowed
# (tk-store env allow REF). Temporary folders stay those of the user.
use_tk-store() {
  local __tk_program=tk-store __tk_code
  command -v tk-store >/dev/null || __tk_program=@PROGRAM@
  if ! __tk_code=$("$__tk_program" direnv export "$@"); then
    # So that it is tried again once they are mended, and what it knows of.
    eval "$__tk_code"
    watch_file flake.nix flake.lock shell.nix default.nix
    return 1
  fi
  eval "$__tk_code"
}

# use flake [REF] [OPTION...], as direnv has it, by way of tk-store. What tk-store does not know of the
# options of nix goes to the 'use flake' that there was.
if command -v tk-store >/dev/null || [[ -x @PROGRAM@ ]]; then
  use_flake() {
    local -a __tk_words=("$@")
    while (($#)); do
      case $1 in
        --impure | --offline | --no-write-lock-file) shift ;;
        --override-input | --option) shift 3 2>/dev/null || break ;;
        -*) break ;;
        *) shift ;;
      esac
    done
    if (($#)); then
      __tk_other_use_flake "${__tk_words[@]}"
    else
      use_tk-store "${__tk_words[@]}"
    fi
  }

  # To keep the one that there was would be a process at each entry; it is read again where it is wanted.
  __tk_other_use_flake() {
    local __tk_lib
    unset -f use_flake
    eval "$("$direnv" stdlib)"
    for __tk_lib in "$direnv_config_dir"/lib/*.sh; do
      [[ $__tk_lib = */tk-store.sh ]] || source "$__tk_lib"
    done
    use_flake "$@"
  }
fi
