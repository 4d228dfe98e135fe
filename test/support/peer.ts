/** Peers of a queue that are no broker, or one that says what a test wants; and what a queue says to them. */

import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import { expect, onTestFinished } from 'vitest'
import { QueueError } from '../../src/queue/queue.ts'

/** The code of the error that the promise ends with. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => new Error('it was kept'),
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(QueueError)
  return (error as QueueError).code
}

/** A peer of ours that says what a test wants. */
export async function startPeer(onSocket: (socket: Socket) => void, host = '127.0.0.1', at = 0): Promise<string> {
  const server: Server = createServer(onSocket).listen(at, host)
  await once(server, 'listening')
  const sockets = new Set<Socket>()
  server.on('connection', (socket) => sockets.add(socket.on('error', () => undefined)))
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as { port: number }
  return `beanstalk://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** Answers stats as beanstalkd does, then hands each further command to the test. */
export function startFakeBroker(onCommand: (socket: Socket, command: string) => void, host?: string): Promise<string> {
  const stats = '---\nmax-job-size: 65535\nversion: "1.12"\n'
  return startPeer((socket) => {
    socket.on('data', (chunk) => {
      if (String(chunk) === 'stats\r\n') socket.write(`OK ${stats.length}\r\n${stats}\r\n`)
      else onCommand(socket, String(chunk))
    })
  }, host)
}
