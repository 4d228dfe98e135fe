/**
 * The least that a client can do to put jobs: writes bytes that were made before, and counts the replies.
 *
 *     node bare-put.js PORT TUBE FILE IN_FLIGHT     FILE: a put command a job; prints {"accepted", "seconds"}
 */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'

const [port, tube, file, inFlight] = process.argv.slice(2)
if (inFlight === undefined) {
  console.error('usage: bare-put.js PORT TUBE FILE IN_FLIGHT')
  process.exit(64)
}
const bytes = readFileSync(file)
const window = inFlight === 'all' ? Number.POSITIVE_INFINITY : Number(inFlight)
/** Where each command ends; two lines are one command. */
const ends = []
for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) ends.push(at + 1)
const commands = ends.filter((_, index) => index % 2 === 1)

const socket = connect({ port: Number(port), host: '127.0.0.1', noDelay: true })
await once(socket, 'connect')
socket.write(`use ${tube}\r\n`)
await once(socket, 'data')
const startedAt = performance.now()
let sent = 0
let answered = 0
let accepted = 0
const fill = () => {
  const until = Math.min(answered + window, commands.length)
  if (until <= sent) return
  socket.write(bytes.subarray(sent === 0 ? 0 : commands[sent - 1], commands[until - 1]))
  sent = until
}
fill()
let isAtLine = true
for await (const chunk of socket) {
  for (let at = 0; at < chunk.length; ) {
    // `INSERTED`, and no other answer begins so.
    if (isAtLine && chunk[at] === 73) accepted++
    const end = chunk.indexOf(10, at)
    isAtLine = end >= 0
    if (!isAtLine) break
    answered++
    at = end + 1
  }
  if (answered === commands.length) break
  // Half a window at a time: a write for each reply would measure the client.
  if (sent - answered <= window / 2) fill()
}
socket.destroy()
console.log(JSON.stringify({ accepted, seconds: (performance.now() - startedAt) / 1000 }))
