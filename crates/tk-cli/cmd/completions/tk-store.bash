# Completions of tk-store for bash.
_tk_store() {
    local program=tk-store words=() word rest=${COMP_LINE:0:COMP_POINT} i candidate
    command -v tk-store >/dev/null || program=@PROGRAM@
    # Bash cuts words at : and = as well: what no blank stands before belongs to the word before it.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $rest == [[:space:]]* || -z $rest ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=("")
        fi
        if [[ $rest != "$word"* ]]; then word=$rest; fi
        rest=${rest#"$word"}
        words[${#words[@]} - 1]+=$word
    done
    # The part of the word that bash leaves alone.
    local before=${words[${#words[@]} - 1]}
    before=${before%"$word"}
    local found=()
    mapfile -t found < <("$program" complete -- "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    for candidate in "${found[@]:1}"; do
        candidate=${candidate%%$'\t'*}
        COMPREPLY+=("${candidate#"$before"}")
    done
    # Outside of a completion, as in a test, there is nothing to set.
    if [[ ${found[0]} == files ]]; then compopt -o default; else compopt +o default; fi 2>/dev/null
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/=:] ]]; then compopt -o nospace; fi 2>/dev/null
    # Files beside words, unless only a part of the word is bash's to complete.
    if [[ ${found[0]} == files && ${#COMPREPLY[@]} != 0 && -z $before ]]; then
        mapfile -t found < <(compgen -f -- "$word")
        COMPREPLY+=("${found[@]}")
    fi
    return 0
}
complete -F _tk_store tk-store
