import { renameSync } from 'node:fs'
import { afterEach, expect, test, vi } from 'vitest'
import { type Queue, QueueError } from '../../src/queue/queue.ts'
import { makeBus } from '../../src/report/events.ts'
import { startWorker, type Worker, type WorkerOptions } from '../../src/worker/worker.ts'
import { addRuns, eventsOf, healthOf, putOne, slotsOf, tell, untilGone, untilWaiting } from '../support/gated.ts'
import { install, until } from '../support/installation.ts'
import { needTools, startManager } from '../support/manager.ts'

// Longer than what is waited for within: a slow machine is no fault.
vi.setConfig({ testTimeout: 180_000 })

const WATCHDOG = { WATCHDOG_USEC: '400000' }

test('systemd hears READY when jobs are taken, is fed while slots go round, and hears STOPPING with the time it may take', async (context) => {
  needTools(context)
  const manager = await startManager()
  const home = await install({ CONCURRENCY: '2', DRAIN_TIME: '20' })
  addRuns(home)
  const worker = await home.startWorker({ NOTIFY_SOCKET: manager.socket, ...WATCHDOG })
  await until('READY', () => manager.heard.length > 0)
  expect(manager.heard[0]).toMatch(/^READY=1(\||$)/)
  const fed = () => manager.heard.filter((line) => line.endsWith('WATCHDOG=1')).length
  for (let round = fed(); round < 4; round = fed()) await untilGone(home, await putOne(home, 'ok'))
  await tell(worker, 'SIGHUP', 'config_read')
  await until('the end of the reload', () => manager.heard.filter((line) => line.startsWith('READY=1')).length === 2)
  expect(await worker.stop()).toBe(0)
  // DRAIN_TIME, and 25 s for what comes after it.
  await until('STOPPING', () => manager.heard.includes('STOPPING=1|EXTEND_TIMEOUT_USEC=45000000'))
})

test('a worker that is paused, and one that looks for its broker, is fed', { timeout: 120_000 }, async (context) => {
  needTools(context)
  const manager = await startManager()
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const worker = await home.startWorker({ NOTIFY_SOCKET: manager.socket, ...WATCHDOG })
  const fedSince = (count: number) => manager.heard.slice(count).filter((line) => line.endsWith('WATCHDOG=1')).length
  renameSync(home.results, `${home.results}.away`)
  await putOne(home, 'ok')
  await worker.waitFor('the pause', ({ event }) => event === 'worker_paused')
  await untilWaiting(home, 0)
  await until('both slots stand by', async () => (await slotsOf(worker)).every(({ state }) => state === 'waiting'))
  const paused = manager.heard.length
  await until('it is fed while paused', () => fedSince(paused) >= 3)
  expect((await healthOf(worker)).status).toBe('paused')
  renameSync(`${home.results}.away`, home.results)
  await worker.waitFor('the end of the pause', ({ event }) => event === 'worker_resumed')
  await home.broker.kill('SIGKILL')
  await until('both look for it', () => eventsOf(worker, 'broker_lost').length === 2)
  const lost = manager.heard.length
  await until('it is fed while it looks', () => fedSince(lost) >= 2)
  expect((await healthOf(worker)).status).toBe('connecting')
})

// What a real broker cannot do: every reply of it has a time. So these queues stand in for the contract.

const workers: Worker[] = []
afterEach(async () => {
  vi.useRealTimers()
  for (const worker of workers.splice(0)) {
    worker.drain('the end of the test')
    await worker.done
  }
})

interface Seat {
  readonly queue: Queue
  rounds: number
}

/** Its `reserve` comes back when `turn` does; when the connection is closed it fails, as the contract says. */
function makeSeat(turn: () => Promise<void>): Seat {
  let close: (error: QueueError) => void = () => undefined
  const closed = new Promise<never>((_, reject) => {
    close = reject
  })
  closed.catch(() => undefined)
  const seat: Seat = {
    rounds: 0,
    queue: {
      watch: async () => undefined,
      reserve: () => {
        seat.rounds++
        return Promise.race([turn().then(() => undefined), closed])
      },
      close: () => close(new QueueError('closed', 'closed')),
    } as unknown as Queue,
  }
  return seat
}

function startSeated(seats: Seat[]): { fed: () => number } {
  let fed = 0
  const waiting = [...seats]
  const options: Partial<WorkerOptions> = {
    slots: seats.length,
    servers: [{ name: 'none', open: async () => waiting.shift()?.queue as Queue }],
    tubes: ['default'],
    once: false,
    drainSeconds: 1,
    bus: makeBus(() => undefined),
    probe: async () => [],
    onAlive: () => fed++,
  }
  workers.push(startWorker(options as WorkerOptions))
  return { fed: () => fed }
}

test('a worker of which one slot hangs is not fed, though the others go round', async () => {
  vi.useFakeTimers({ toFake: ['performance'] })
  const goesRound = makeSeat(() => new Promise((resolve) => setTimeout(resolve, 1)))
  const hangs = makeSeat(() => new Promise(() => undefined))
  const { fed } = startSeated([goesRound, hangs])
  await until('both take jobs', () => goesRound.rounds > 3 && hangs.rounds === 1)
  const round = async () => {
    const before = goesRound.rounds
    for (; goesRound.rounds < before + 3; await new Promise((resolve) => setTimeout(resolve, 1)));
  }
  vi.advanceTimersByTime(59_000)
  const soon = fed()
  await round()
  expect(fed()).toBeGreaterThan(soon)
  vi.advanceTimersByTime(2_000)
  // The slot that goes round may be in the middle of a step.
  await round()
  const late = fed()
  await round()
  expect(fed()).toBe(late)
})

test('a worker whose slots all go round is fed however long it lives', async () => {
  vi.useFakeTimers({ toFake: ['performance'] })
  const seats = [1, 2].map(() => makeSeat(() => new Promise((resolve) => setTimeout(resolve, 1))))
  const { fed } = startSeated(seats)
  for (let hours = 0; hours < 3; hours++) {
    const before = seats.map(({ rounds }) => rounds)
    await until('both went round', () => seats.every(({ rounds }, seat) => rounds > (before[seat] ?? 0) + 2))
    const now = fed()
    vi.advanceTimersByTime(3_600_000)
    await until('it is fed', () => fed() > now)
  }
})
