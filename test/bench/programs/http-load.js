/**
 * Asks a server for documents as fast as it answers: keep-alive, one request at a time on each connection, sockets without
 * an HTTP client. Prints {"requests", "seconds", "wrong"}: `wrong` are answers other than 200 with the expected length.
 *
 *     node http-load.js PORT FILE CONNECTIONS WARM_UP_SECONDS SECONDS     FILE: lines of PATH BYTES
 */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'

const [port, file, connections, warmUp, seconds] = process.argv.slice(2)
if (seconds === undefined) {
  console.error('usage: http-load.js PORT FILE CONNECTIONS WARM_UP_SECONDS SECONDS')
  process.exit(64)
}
const documents = readFileSync(file, 'utf8')
  .trim()
  .split('\n')
  .map((line) => line.split(' '))
  .map(([path, bytes]) => ({
    request: Buffer.from(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nAccept: */*\r\n\r\n`),
    bytes: Number(bytes),
  }))

let next = 0
let answered = 0
let wrong = 0

/** Bytes of the whole answer; undefined while its head is not there; NaN when it is not what was asked for. */
function lengthOf(answer, expected) {
  const end = answer.indexOf('\r\n\r\n')
  if (end < 0) return undefined
  const head = answer.latin1Slice(0, end)
  if (!head.startsWith('HTTP/1.1 200 ')) return Number.NaN
  const found = /\r\ncontent-length: (\d+)/i.exec(head)
  return found !== null && Number(found[1]) === expected ? end + 4 + expected : Number.NaN
}

async function ask() {
  const socket = connect({ port: Number(port), host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  let document
  let answer
  const send = () => {
    document = documents[next++ % documents.length]
    answer = undefined
    socket.write(document.request)
  }
  socket.on('data', (chunk) => {
    answer = answer === undefined ? chunk : Buffer.concat([answer, chunk])
    const length = lengthOf(answer, document.bytes)
    if (length === undefined || answer.length < length) return
    if (answer.length === length) {
      answered++
      return send()
    }
    // Where the next answer begins cannot be told.
    socket.destroy()
  })
  socket.on('error', () => undefined)
  socket.on('close', () => wrong++)
  send()
}

const sleep = (s) => new Promise((resolve) => setTimeout(resolve, Number(s) * 1000))
await Promise.all(Array.from({ length: Number(connections) }, ask))
await sleep(warmUp)
const before = answered
const startedAt = performance.now()
await sleep(seconds)
const elapsed = (performance.now() - startedAt) / 1000
process.stdout.write(`${JSON.stringify({ requests: answered - before, seconds: elapsed, wrong })}\n`, () =>
  process.exit(0),
)
