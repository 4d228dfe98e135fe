/**
 * A plain connection to beanstalkd for looking on: it asks what the workers' driver never asks, and shares no code with
 * what it looks at.
 */

import { connect as openSocket, type Socket } from 'node:net'
import type { TicketState } from '../../queue/queue.ts'

const ANSWER_MS = 5_000

export interface Wire {
  /** Sends one line; its answer, with the body of an OK or FOUND. Rejects when the connection is lost. */
  ask(line: string): Promise<{ readonly head: string; readonly body: Buffer }>
  close(): void
}

interface Question {
  readonly resolve: (answer: { head: string; body: Buffer }) => void
  readonly reject: (error: Error) => void
}

export function openWire(host: string, port: number): Wire {
  const socket = openSocket(port, host)
  const questions: Question[] = []
  let received: Buffer = Buffer.alloc(0)
  let failure: Error | undefined
  const fail = (error: Error) => {
    failure ??= error
    socket.destroy()
    for (const { reject } of questions.splice(0)) reject(failure)
  }
  socket.on('error', fail)
  socket.on('close', () => fail(new Error(`the broker at ${host}:${port} closed the connection`)))
  socket.setTimeout(ANSWER_MS, () => questions.length > 0 && fail(new Error(`the broker at ${host}:${port} is silent`)))
  socket.on('data', (chunk) => {
    received = Buffer.concat([received, chunk])
    for (let answer = takeAnswer(); answer !== undefined; answer = takeAnswer()) questions.shift()?.resolve(answer)
  })
  function takeAnswer(): { head: string; body: Buffer } | undefined {
    const end = received.indexOf('\r\n')
    if (end < 0) return undefined
    const head = received.toString('latin1', 0, end)
    const bytes = Number(/^(?:OK|FOUND \d+) (\d+)$/.exec(head)?.[1] ?? Number.NaN)
    const next = Number.isNaN(bytes) ? end + 2 : end + 2 + bytes + 2
    if (received.length < next) return undefined
    const body = Number.isNaN(bytes) ? Buffer.alloc(0) : Buffer.from(received.subarray(end + 2, end + 2 + bytes))
    received = received.subarray(next)
    return { head, body }
  }
  return {
    ask: (line) =>
      new Promise((resolve, reject) => {
        if (failure !== undefined) return reject(failure)
        questions.push({ resolve, reject })
        writeLine(socket, line)
      }),
    close: () => fail(new Error('closed')),
  }
}

function writeLine(socket: Socket, line: string): void {
  socket.write(`${line}\r\n`)
}

/** Jobs of a tube that are not at their end; those that are buried. */
export async function countTube(wire: Wire, tube: string): Promise<{ open: number; buried: number }> {
  const { head, body } = await wire.ask(`stats-tube ${tube}`)
  if (head === 'NOT_FOUND') return { open: 0, buried: 0 }
  const value = (name: string) =>
    Number(new RegExp(`^current-jobs-${name}: (\\d+)$`, 'm').exec(body.toString())?.[1] ?? 0)
  return { open: value('ready') + value('reserved') + value('delayed'), buried: value('buried') }
}

/** A broker that lost its memory gives numbers anew: the body tells whether the ticket is still this job's. */
export async function stateOfTicket(wire: Wire, ticket: string, body: Buffer): Promise<TicketState> {
  const [stats, peek] = await Promise.all([wire.ask(`stats-job ${ticket}`), wire.ask(`peek ${ticket}`)])
  const state = /^state: (\w+)$/m.exec(stats.body.toString())?.[1]
  if (state === undefined || !peek.body.equals(body)) return 'gone'
  return state as TicketState
}
