# Completions of tk-store for fish.
function __tk_store_complete
    set -l program tk-store
    command -q tk-store; or set program @PROGRAM@
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($program complete -- $words[2..] 2>/dev/null)
    test (count $found) -gt 1; and printf '%s\n' $found[2..]
    test "$found[1]" = files; and __fish_complete_path (commandline -ct)
end
complete -c tk-store -f -a '(__tk_store_complete)'
