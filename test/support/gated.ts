/** What tests of a worker's whole behaviour have in common: runs that wait for a word, and questions to the worker. */

import { appendFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Installation, type LogLine, newUuid, type RunningWorker, until } from './installation.ts'

/** Adds `waits` and `ok`: runs that note themselves, and of which the first kind works until it is told to go. */
export function addRuns(home: Installation): void {
  home.addAlgorithm(
    'waits',
    'echo "$QWORKER_ATTEMPT" >> "$(dirname "$0")/runs"; while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done; echo 1',
  )
  home.addAlgorithm('ok', 'echo 2')
}

export function letGo(home: Installation): void {
  appendFileSync(join(home.algorithms, 'waits', 'go'), '')
}

export interface PutJob {
  readonly uuid: string
  readonly ticket: string
}

export async function putOne(
  home: Installation,
  type: string,
  options: { ttr?: number; tube?: string } = {},
): Promise<PutJob> {
  const uuid = newUuid()
  return { uuid, ticket: await home.put(`[{"uuid":"${uuid}","type":"${type}"},{}]`, { ttr: 60, ...options }) }
}

export interface Health {
  readonly status: string
  readonly reason?: string
  readonly slots: { readonly total: number; readonly idle: number; readonly busy: number }
}

export async function healthOf(worker: RunningWorker): Promise<Health> {
  let health: Health | undefined
  const look = async () => {
    health = (await (await fetch(`${worker.url}healthz`)).json()) as Health
    return true
  }
  // A worker that is short of descriptors closes connections at times.
  await until('an answer to /healthz', () => look().catch(() => false))
  return health as Health
}

export function eventsOf(worker: RunningWorker, event: string): LogLine[] {
  return worker.events.filter((line) => line.event === event)
}

/** Sends a signal, and waits for one more line of what it leads to. */
export async function tell(worker: RunningWorker, signal: NodeJS.Signals, event: string): Promise<LogLine> {
  const before = eventsOf(worker, event).length
  worker.child.kill(signal)
  await until(`${event} after ${signal}`, () => eventsOf(worker, event).length > before)
  return eventsOf(worker, event)[before] as LogLine
}

/** TTIN: one line for each slot. */
export async function slotsOf(worker: RunningWorker): Promise<LogLine[]> {
  const { total } = (await healthOf(worker)).slots
  const before = eventsOf(worker, 'slot_state').length
  worker.child.kill('SIGTTIN')
  await until('a line for each slot', () => eventsOf(worker, 'slot_state').length >= before + total)
  return eventsOf(worker, 'slot_state').slice(before)
}

/** Slots that wait at the broker for a job. */
export async function untilWaiting(home: Installation, count: number): Promise<void> {
  await until(`${count} slots wait for jobs`, async () => (await home.broker.stat('current-waiting')) === count)
}

export async function untilGone(home: Installation, ...jobs: PutJob[]): Promise<void> {
  for (const { ticket, uuid } of jobs)
    await until(`${uuid} is gone from the queue`, async () => (await home.ticketState(ticket)) === 'gone', 90)
}
