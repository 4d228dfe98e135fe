// An algorithm is a program that reads its job from stdin, prints its result, and ends. What it may rely on:
//
//   stdin                  the payload, as JSON; also the file input.json
//   working directory      a fresh, empty one; removed after the run
//   QWORKER_...            environment: UUID, ATTEMPT, TTR (seconds), DEADLINE (ISO 8601) and more
//   stdout                 one JSON value: the result
//   stderr                 the log; its end stands in the status document
//   files that it leaves   published beside the result, if algorithm.yaml names them
//   exit code              0: success. 65: the input is bad, never tried again. Any other: tried again later
//   time                   TTR + GRACE_TIME; then the whole process tree is ended
//
// It runs at least once: when a worker dies in the middle, the job is run again.

import { readFileSync, writeFileSync } from 'node:fs'

const payload = JSON.parse(readFileSync(0, 'utf8'))
const name = payload?.name
if (typeof name !== 'string' || name === '') {
  console.error('name: text is expected, such as {"name": "you"}')
  process.exit(65)
}

const greeting = `Hello, ${name}!`
console.error(`attempt ${process.env.QWORKER_ATTEMPT} of ${process.env.QWORKER_MAX_ATTEMPTS}`)
writeFileSync('greeting.txt', `${greeting}\n`)
console.log(JSON.stringify({ greeting }))
