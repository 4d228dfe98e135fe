import { expect, test, vi } from 'vitest'
import { addRuns, eventsOf, healthOf, letGo, putOne, slotsOf, tell, untilGone, untilWaiting } from '../support/gated.ts'
import { findRuns, install, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'

// Longer than what is waited for within: a slow machine is no fault.
vi.setConfig({ testTimeout: 180_000 })

test('TSTP takes no job while the running one goes on and is published; CONT takes jobs again', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const worker = await home.startWorker()
  const running = await putOne(home, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await tell(worker, 'SIGTSTP', 'worker_quiet')
  const waiting = await putOne(home, 'ok')
  expect(await healthOf(worker)).toMatchObject({
    status: 'quiet',
    reason: expect.stringMatching(/^quiet since .*Z \(SIGTSTP\)$/),
  })
  letGo(home)
  await untilGone(home, running)
  expect(home.status(running.uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1 }] })
  // Both have gone round since: neither took it.
  await until('both slots stand by', async () => (await slotsOf(worker)).every(({ state }) => state === 'waiting'))
  expect(await home.ticketState(waiting.ticket)).toBe('ready')
  await tell(worker, 'SIGCONT', 'worker_resumed')
  await untilGone(home, waiting)
  expect(await healthOf(worker)).toMatchObject({ status: 'ok', slots: { total: 2 } })
  expect(await healthOf(worker)).not.toHaveProperty('reason')
})

test('TTIN writes a line for each slot: what it does, on which job, by which process, for how long', async () => {
  const home = await install({ CONCURRENCY: '3' })
  addRuns(home)
  const worker = await home.startWorker()
  const { uuid } = await putOne(home, 'waits')
  const started = await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await untilWaiting(home, 2)
  const lines = await slotsOf(worker)
  expect(lines.map(({ slot }) => slot)).toEqual([1, 2, 3])
  expect(lines.filter(({ state }) => state === 'idle')).toHaveLength(2)
  const [busy] = lines.filter(({ state }) => state === 'busy')
  expect(busy).toMatchObject({ slot: started.slot, uuid, type: 'waits', seconds: expect.any(Number) })
  expect(busy?.step).toBe(`running attempt 1 of 5, pid ${started.pid}`)
  expect(findRuns(home.results)).toContain(started.pid)
  expect(busy?.msg).toMatch(
    /^slot \d: busy: [0-9a-f]{32} waits, running attempt 1 of 5, pid \d+, in hand for [\d.]+ s$/,
  )
  letGo(home)
})

test.each(['SIGTERM', 'SIGINT'] as const)(
  '%s while a job is published lets it be published and settled, then ends',
  async (signal) => {
    const home = await install({ CONCURRENCY: '2' })
    addRuns(home)
    // The last question before the commit is a touch: while it is kept back, the publication is in its middle. Of a run
    // that is over in a moment nothing is asked.
    home.addAlgorithm('lasts', 'sleep 0.3; echo 2')
    const proxy = await startProxy(home.broker.port)
    const worker = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
    proxy.holdFrom('touch')
    const job = await putOne(home, 'lasts')
    await worker.waitFor('the end of the run', ({ event }) => event === 'run_ended')
    await until('it publishes', async () => (await slotsOf(worker)).some(({ step }) => step === 'publishing'))
    await tell(worker, signal, 'worker_draining')
    const other = await putOne(home, 'ok')
    proxy.release()
    expect(await worker.exited).toEqual([0, null])
    expect(await home.ticketState(job.ticket)).toBe('gone')
    expect(home.result(job.uuid)?.result).toBe(2)
    expect(eventsOf(worker, 'reservation_broken')).toEqual([])
    expect(await home.ticketState(other.ticket)).toBe('ready')
  },
)

test('TERM ends a quiet worker after the job in hand, and CONT does not bring it back', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const worker = await home.startWorker()
  const running = await putOne(home, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await tell(worker, 'SIGTSTP', 'worker_quiet')
  const waiting = await putOne(home, 'ok')
  await tell(worker, 'SIGTERM', 'worker_draining')
  expect(await healthOf(worker)).toMatchObject({ status: 'draining' })
  worker.child.kill('SIGCONT')
  await until('the other slot has ended', async () => (await healthOf(worker)).slots.total === 1)
  expect(eventsOf(worker, 'worker_resumed')).toEqual([])
  letGo(home)
  expect(await worker.exited).toEqual([0, null])
  expect(home.result(running.uuid)).toBeDefined()
  expect(await home.ticketState(waiting.ticket)).toBe('ready')
})

test('TERM ends an idle worker that is quiet', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const worker = await home.startWorker()
  await tell(worker, 'SIGTSTP', 'worker_quiet')
  await until('both slots stand by', async () => (await slotsOf(worker)).every(({ state }) => state === 'waiting'))
  expect(await worker.stop()).toBe(0)
})

test('a second TERM gives up the ticket that is being taken back from a dead broker, and ends the run', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addRuns(home)
  const worker = await home.startWorker()
  await putOne(home, 'waits', { ttr: 6 })
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await home.broker.kill('SIGKILL')
  await worker.waitFor('the break', ({ event }) => event === 'reservation_broken')
  worker.child.kill('SIGTERM')
  await worker.waitFor('the drain', ({ event }) => event === 'worker_draining')
  worker.child.kill('SIGTERM')
  expect(await worker.exited).toEqual([0, null])
  expect(eventsOf(worker, 'run_ended')).toMatchObject([{ outcome: 'interrupted' }])
  // Else it would say that 10 s were over.
  expect(eventsOf(worker, 'reservation_lost')).toMatchObject([
    { error: expect.stringContaining('given up while the worker stops') },
  ])
  expect(findRuns(home.results)).toEqual([])
})
