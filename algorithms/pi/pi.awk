# Estimates pi from darts thrown at a square: the share that hits the inscribed circle is pi / 4.
# Runs in mawk, gawk and busybox awk alike. The generator is Park and Miller's with the multiplier 48271, in whole
# numbers below 2^53, so that one seed gives the same estimate in all of them.

function refuse(why) {
  print "pi: " why "; give {\"samples\": N, \"seed\": S} with whole numbers, N from 1 to 1000000000, S from 0 to 2147483645" > "/dev/stderr"
  refused = 1
  exit 65
}

# A whole number from least to most.
function check(key, text, least, most) {
  if (text !~ /^(0|[1-9][0-9]*)$/ || length(text) > 10 || text + 0 < least || text + 0 > most) {
    refuse("\"" key "\" is " substr(text, 1, 40))
  }
  return text + 0
}

function draw() {
  state = (state * 48271) % 2147483647
  return state / 2147483647
}

# Newton's; busybox may be built without sqrt().
function root(x,   guess, i) {
  if (x == 0) return 0
  guess = 1
  for (i = 0; i < 60; i++) guess = (guess + x / guess) / 2
  return guess
}

{ payload = payload $0 " " }

END {
  if (refused) exit 65
  gsub(/[ \t\r]/, "", payload)
  if (payload !~ /^[{].*[}]$/) refuse("the payload is not a JSON object")
  samples = 1000000
  seed = 0
  count = split(substr(payload, 2, length(payload) - 2), pairs, ",")
  for (i = 1; i <= count; i++) {
    colon = index(pairs[i], ":")
    key = substr(pairs[i], 1, colon - 1)
    value = substr(pairs[i], colon + 1)
    if (key == "\"samples\"") samples = check("samples", value, 1, 1000000000)
    else if (key == "\"seed\"") seed = check("seed", value, 0, 2147483645)
    else refuse("there is something else than \"samples\" and \"seed\": " substr(pairs[i], 1, 40))
  }

  state = seed + 1
  # small seeds give small first numbers
  for (i = 0; i < 10; i++) draw()
  hits = 0
  for (i = 0; i < samples; i++) {
    x = draw()
    y = draw()
    if (x * x + y * y < 1) hits++
  }
  share = hits / samples
  printf "{\"pi\":%.10f,\"standard_error\":%.10f,\"samples\":%d,\"seed\":%d}\n", 4 * share, 4 * root(share * (1 - share) / samples), samples, seed
}
