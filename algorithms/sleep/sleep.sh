#!/bin/sh
# Sleeps for "seconds" of the JSON payload on stdin, or else for the TTR, its argument. Needs sh, sed and sleep.

refuse() {
  printf 'sleep: %s; give {"seconds": N} with N from 0 to 86400, such as 2.5, or {} for the TTR\n' "$1" >&2
  exit 65
}

# One line without strings: keys and values become "", except the key "seconds".
flat=$(sed -e ':all' -e '$!{N;ball' -e '}' \
  -e 's/[[:space:]]/ /g' -e 's/\\./_/g' -e 's/"seconds" *:/\n/g' -e 's/"[^"]*"/""/g')
case $flat in
  ' '*) flat=$(printf '%s' "$flat" | sed -e 's/^ *//') ;;
esac
case $flat in
  '{'*'}' | '{'*'} ') ;;
  *) refuse 'the payload is not a JSON object' ;;
esac

seconds=$1
newline='
'
case $flat in
  *"$newline"*)
    # take off the outer braces, fold what is nested, and keep what follows the last "seconds"
    flat=${flat#'{'}
    flat=${flat%'}'*}
    depth=0
    while case $flat in *[][{}]*) true ;; *) false ;; esac; do
      depth=$((depth + 1))
      [ "$depth" -le 50 ] || refuse 'the payload is nested deeper than 50 levels'
      flat=$(printf '%s\n' "$flat" | sed -e ':all' -e '$!{N;ball' -e '}' -e 's/[[{][^][{}]*[]}]/_/g')
    done
    value=$(printf '%s\n' "$flat" | sed -n -e ':all' -e '$!{N;ball' -e '}' -e 's/.*\n *\([^, ]*\) *\(,.*\)\{0,1\}$/\1/p')
    if [ "$value" = '""' ]; then refuse '"seconds" is text, not a number'; fi
    if [ -n "$value" ]; then
      printf '%s\n' "$value" | sed -n -e '/^\(0\|[1-9][0-9]\{0,4\}\)\(\.[0-9]\{1,9\}\)\{0,1\}$/q' -e 'q1' \
        || refuse "\"seconds\" is $(printf '%.40s' "$value")"
      [ "${value%.*}" -lt 86400 ] || [ "$value" = 86400 ] || refuse "\"seconds\" is $value"
      seconds=$value
    fi
    ;;
esac

# in the background, because a shell heeds a signal only after what runs in the foreground has ended
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 143' TERM INT HUP
sleep "$seconds" &
child=$!
wait "$child" || exit 1
printf '{"slept_seconds":%s}\n' "$seconds"
