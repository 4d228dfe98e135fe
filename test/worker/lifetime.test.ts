import { appendFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findRuns, install, newUuid, until } from '../support/installation.ts'

test('jobs that outlast their TTR are kept, and two workers never run one of them at the same time (B1, B2, B15)', async () => {
  const home = await install({ GRACE_TIME: '5', CONCURRENCY: '2' })
  // The lock is taken for as long as the run lasts: whoever finds it taken tells so.
  home.addAlgorithm(
    'long',
    'lock="$(dirname "$0")/$QWORKER_UUID"; mkdir "$lock" || { echo overlap >> "$(dirname "$0")/overlaps"; exit 1; }; sleep 2.5; rmdir "$lock"; echo 1',
  )
  const workers = [await home.startWorker(), await home.startWorker()]
  // All in one two-digit folder: both workers make it at once.
  const uuids = Array.from({ length: 8 }, () => `ab${newUuid().slice(2)}`)
  await Promise.all(uuids.map((uuid) => home.putJob('long', {}, { uuid, ttr: 1 })))
  await until('all are complete', () => uuids.every((uuid) => home.status(uuid)?.state === 'complete'))
  expect(existsSync(join(home.algorithms, 'long', 'overlaps'))).toBe(false)
  for (const uuid of uuids) expect(home.status(uuid)?.attempts).toHaveLength(1)
  const lost = workers.flatMap(({ events }) => events.filter(({ event }) => event === 'settle_failed'))
  expect(lost).toEqual([])
})

test('a run is ended at TTR + GRACE_TIME: TERM first, then KILL, with a receipt, and its job is released (B10)', async () => {
  const home = await install({ GRACE_TIME: '0' })
  home.addAlgorithm('deaf', 'trap "" TERM; echo started; while :; do sleep 0.1; done', 'max_attempts: 1')
  home.addAlgorithm('polite', 'trap "echo cleaned; exit 0" TERM; while :; do sleep 0.1; done', 'max_attempts: 1')
  const worker = await home.startWorker()
  const [deaf, polite] = [await home.putJob('deaf', {}, { ttr: 1 }), await home.putJob('polite', {}, { ttr: 1 })]
  await until('both are buried', () => [deaf, polite].every((uuid) => home.status(uuid)?.state === 'failed'))
  const [first, second] = [deaf, polite].map((uuid) => home.status(uuid)?.attempts[0])
  expect(first).toMatchObject({
    outcome: 'timed_out',
    error: 'ended after 1 s (TTR + GRACE_TIME)',
    kill: { survivors: [] },
  })
  expect(first?.kill?.signals.map(({ signal }) => signal)).toEqual(['SIGTERM', 'SIGKILL'])
  expect(second?.kill?.signals.map(({ signal }) => signal)).toEqual(['SIGTERM'])
  expect(await (await fetch(`${worker.url}${polite}/stdout.log`)).text()).toBe('cleaned\n')
  expect(findRuns(home.results)).toEqual([])
})

test('SIGTERM takes no more jobs and lets the running one finish (B12)', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('slow', 'while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done; echo 1')
  const worker = await home.startWorker()
  const running = await home.putJob('slow')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  const waiting = await home.put(`[{"uuid":"${newUuid()}","type":"slow"},{}]`)
  worker.child.kill('SIGTERM')
  await worker.waitFor('the drain', ({ event }) => event === 'worker_draining')
  expect(((await (await fetch(`${worker.url}healthz`)).json()) as { status: string }).status).toBe('draining')
  appendFileSync(join(home.algorithms, 'slow', 'go'), '')
  expect(await worker.exited).toEqual([0, null])
  expect(home.result(running)).toBeDefined()
  expect(await home.ticketState(waiting)).toBe('ready')
})

test('a second signal ends the run, gives its job back at once, spends no attempt and leaves no process (B12, B18)', async () => {
  const home = await install({ CONCURRENCY: '1', MAX_ATTEMPTS: '1' })
  home.addAlgorithm('slow', 'test -e "$(dirname "$0")/quick" || sleep 300 & wait; echo "$QWORKER_ATTEMPT"')
  const worker = await home.startWorker()
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"slow"},{}]`, { ttr: 600 })
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  worker.child.kill('SIGINT')
  await worker.waitFor('the drain', ({ event }) => event === 'worker_draining')
  worker.child.kill('SIGINT')
  expect(await worker.exited).toEqual([0, null])
  expect(findRuns(home.results)).toEqual([])
  expect(await home.ticketState(ticket)).toBe('ready')
  expect(home.status(uuid)).toMatchObject({ state: 'queued', attempts: [] })
  appendFileSync(join(home.algorithms, 'slow', 'quick'), '')
  const next = await home.startWorker()
  await next.waitFor('the result', ({ event }) => event === 'job_published')
  expect(home.result(uuid)?.result).toBe(1)
})

test('when DRAIN_TIME is over the run is ended and its job given back', async () => {
  const home = await install({ DRAIN_TIME: '1' })
  home.addAlgorithm('slow', 'sleep 300')
  const worker = await home.startWorker()
  const ticket = await home.put(`[{"uuid":"${newUuid()}","type":"slow"},{}]`, { ttr: 600 })
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  expect(await worker.stop()).toBe(0)
  expect(await home.ticketState(ticket)).toBe('ready')
})

test('a broker that goes away and comes back is found again', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  const worker = await home.startWorker()
  const { startBroker } = await import('../support/broker.ts')
  await home.broker.stop()
  await worker.waitFor('the loss', ({ event }) => event === 'broker_lost')
  const back = await startBroker({ port: home.broker.port })
  try {
    await worker.waitFor('the return', ({ event }) => event === 'broker_back')
    const uuid = newUuid()
    const body = `[{"uuid":"${uuid}","type":"ok"},{}]`
    await back.ask(`put 0 0 10 ${body.length}\r\n${body}\r\n`)
    await worker.waitFor('the job', (line) => line.event === 'job_published' && line.uuid === uuid)
  } finally {
    await worker.stop()
    await back.stop()
  }
})

test('what runs is told over HTTP: 202 with the attempt and its deadline', async () => {
  const home = await install()
  home.addAlgorithm('slow', 'while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done; echo 1')
  const worker = await home.startWorker()
  const uuid = await home.putJob('slow')
  expect((await fetch(worker.url + newUuid())).status).toBe(404)
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  const response = await fetch(worker.url + uuid)
  expect(response.status).toBe(202)
  expect(response.headers.get('retry-after')).toMatch(/^\d+$/)
  expect(response.headers.get('access-control-allow-origin')).toBe('*')
  expect(await response.json()).toMatchObject({
    uuid,
    state: 'running',
    running: { attempt: 1, deadline: expect.stringMatching(/Z$/) },
  })
  appendFileSync(join(home.algorithms, 'slow', 'go'), '')
  await until('the result', async () => (await fetch(worker.url + uuid)).status === 200)
})
