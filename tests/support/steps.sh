# shellcheck shell=bash
# Named steps for tests/quick, tests/run and tests/demo, which source this file. A long step prints a line every nine
# seconds: "still clippy, 36 s of usually 50 s".

# A folder for logs. The file `step` names the current step, and each file in `running` a running part of it.
log=$(mktemp -d)
mkdir "$log/running"

# Starts a step and its lines. SECONDS is its usual time on two processors.
step() {  # SECONDS NAME
    echo "$EPOCHSECONDS $*" >"$log/step"
    echo "== $2 (usually $1 s)"
    [ -n "${beat:-}" ] || { heartbeat & beat=$!; }
}

heartbeat() {
    local since usual name parts
    # A sleep that outlives this shell must not hold its output open.
    while sleep 9 >/dev/null 2>&1; do
        read -r since usual name <"$log/step" || return
        parts=$(find "$log/running" -type f -printf ' %f')
        echo "   still $name${parts:+:$parts}, $((EPOCHSECONDS - since)) s of usually $usual s"
    done
}

# Ends the last step.
end_steps() {
    [ -z "${beat:-}" ] || { kill "$beat"; wait "$beat"; } 2>/dev/null || :
    beat=
}

# Runs one check of the code's form. Prints the output of a command that fails.
check() {  # NAME COMMAND...
    local name=$1; shift
    touch "$log/running/$name"
    if "$@" >"$log/check" 2>&1; then
        echo "test $name ... ok"
    else
        cat "$log/check"; echo "test $name ... FAILED"
    fi
    rm "$log/running/$name"
}

# The checks of the code's form, for tests/quick and tests/run.
check_form() {
    check "formatting" cargo fmt --check
    check "clippy" cargo clippy -q --locked --all-targets -- -D warnings
    check "rustdoc" env RUSTDOCFLAGS="-D warnings" cargo doc -q --locked --no-deps
}

# Adds up the lines of `check` in the file FORM, and those of cargo's test binaries in the file TESTS.
count() {  # FORM TESTS
    local ok bad
    passed=$(grep -c ' \.\.\. ok$' "$1") failed=$(grep -c ' \.\.\. FAILED$' "$1")
    while read -r ok bad; do
        passed=$((passed + ok)) failed=$((failed + bad))
    done < <(sed -nE 's/^test result: [a-zA-Z]+\. ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$2")
}
