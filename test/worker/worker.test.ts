import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findRuns, install, leaveOut, newUuid, until } from '../support/installation.ts'

test('a job put by a foreign client as two bare objects is run, published with its timestamp, and removed (B13)', async () => {
  const home = await install()
  home.addAlgorithm(
    'echo',
    'printf \'{"got":%s,"attempt":%s}\' "$(cat)" "$QWORKER_ATTEMPT"; echo note >&2; echo x > out.txt',
    'version: "2.1"',
  )
  const worker = await home.startWorker()
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"echo"},{"23":"42","foo":"bar","n":12345678901234567890}]`)
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(await home.ticketState(ticket)).toBe('gone')
  const response = await fetch(worker.url + uuid)
  const text = await response.text()
  expect(response.status).toBe(200)
  expect(text).toContain('"n":12345678901234567890')
  const result = JSON.parse(text)
  expect(result).toMatchObject({
    format: 1,
    uuid,
    type: 'echo',
    version: '2.1',
    attempt: 1,
    exit_code: 0,
    files: [{ name: 'out.txt', bytes: 2 }],
  })
  expect(new Date(result.timestamp).toISOString()).toBe(result.timestamp)
  expect(await (await fetch(`${worker.url}${uuid}/out.txt`)).text()).toBe('x\n')
  expect(await (await fetch(`${worker.url}${uuid}/stderr.log`)).text()).toBe('note\n')
  expect(home.status(uuid)).toMatchObject({
    state: 'complete',
    attempts: [{ attempt: 1, outcome: 'success', stderr_tail: 'note\n' }],
  })
  expect(await worker.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test('bytes that are no work package are buried with a reason, and the jobs behind them run (B4, B14)', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('ok', 'echo 1')
  const uuid = newUuid()
  const bodies = [
    'no JSON',
    Buffer.from([0xff, 0xfe, 0]),
    '{}',
    `[{"type":"ok"},{}]`,
    `[{"uuid":"../../../../../../tmp/evil","type":"ok"},{}]`,
    `[{"uuid":"${newUuid().toUpperCase().replace(/[0-9]/g, 'A')}","type":"ok"},{}]`,
    `[{"uuid":"${newUuid()}","type":"ok"},${'['.repeat(30_000)}${']'.repeat(30_000)}]`,
    `[{"uuid":"${uuid}","type":"../../bin/sh"},{}]`,
    `[{"uuid":"${newUuid()}","type":"$(reboot)"},{}]`,
  ]
  const tickets: string[] = []
  for (const body of bodies) tickets.push(await home.put(body))
  const last = await home.putJob('ok')
  const worker = await home.startWorker()
  await worker.waitFor('the last job', (line) => line.event === 'job_settled' && line.uuid === last)
  for (const ticket of tickets) expect(await home.ticketState(ticket)).toBe('buried')
  const refused = worker.events.filter(({ event }) => event === 'job_refused')
  expect(refused).toHaveLength(bodies.length)
  for (const { error } of refused) expect(error).toMatch(/must|is not|nested|array/)
  expect(home.status(uuid)).toMatchObject({ state: 'failed', type: null, reason: expect.stringMatching(/type must/) })
  expect((await fetch(worker.url + uuid)).status).toBe(422)
  expect(existsSync('/tmp/evil')).toBe(false)
  expect(findOutside(home.base)).toEqual(['algorithms', 'results'])
})

function findOutside(base: string): string[] {
  return readdirSync(base).sort()
}

test('a job of an unknown type is buried, never run nor deleted, even after a success (B6)', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('ok', 'echo 1')
  const first = await home.putJob('ok')
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"nope"},{}]`)
  const last = await home.putJob('ok')
  const worker = await home.startWorker()
  await worker.waitFor('the last job', (line) => line.event === 'job_settled' && line.uuid === last)
  expect(await home.ticketState(ticket)).toBe('buried')
  expect(home.status(uuid)).toMatchObject({
    state: 'failed',
    reason: expect.stringMatching(/no algorithm nope here; there is ok/),
  })
  expect(home.result(first)).toBeDefined()
})

test('a type that is nearly the name of an algorithm is buried with that name in its reason', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('forecast', 'echo 1')
  home.addAlgorithm('ok', 'echo 1')
  const uuid = await home.putJob('forcast')
  const worker = await home.startWorker()
  await worker.waitFor('the end of the job', ({ event }) => event === 'job_refused')
  expect(home.status(uuid)?.reason).toMatch(
    /no algorithm forcast here; did you mean forecast\? There are forecast, ok; after/,
  )
})

test('a failing job is retried with growing delay and buried at its last attempt, others run meanwhile (B5)', async () => {
  const home = await install({ CONCURRENCY: '1', RETRY_DELAY: '1', MAX_ATTEMPTS: '3' })
  home.addAlgorithm('bad', 'echo "attempt $QWORKER_ATTEMPT of $QWORKER_MAX_ATTEMPTS" >&2; exit 10')
  home.addAlgorithm('ok', 'echo 1')
  const worker = await home.startWorker()
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"bad"},{}]`)
  await worker.waitFor('the first failure', (line) => line.event === 'job_settled' && line.uuid === uuid)
  const waiting = await fetch(worker.url + uuid)
  expect(waiting.status).toBe(202)
  expect(Number(waiting.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
  const other = await home.putJob('ok')
  await worker.waitFor('the other job', (line) => line.event === 'job_settled' && line.uuid === other)
  await worker.waitFor('burial', (line) => line.uuid === uuid && /bury/.test(JSON.stringify(line.settlement)))
  expect(await home.ticketState(ticket)).toBe('buried')
  const delays = worker.events
    .filter((line) => line.event === 'job_settled' && line.uuid === uuid)
    .map((line) => line.settlement)
  expect(delays).toMatchObject([
    { action: 'release', delaySeconds: 1 },
    { action: 'release', delaySeconds: 2 },
    { action: 'bury' },
  ])
  expect(home.status(uuid)).toMatchObject({
    reason: 'exit 10 (attempt 3 of 3)',
    attempts: [1, 2, 3].map((attempt) => ({ attempt, exit_code: 10, stderr_tail: `attempt ${attempt} of 3\n` })),
  })
  expect((await fetch(worker.url + uuid)).status).toBe(422)
})

test('a job that was buried and is kicked by hand begins anew', async () => {
  const home = await install()
  home.addAlgorithm('moody', 'test -e "$(dirname "$0")/good" && echo 1', 'max_attempts: 1')
  const worker = await home.startWorker()
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"moody"},{}]`)
  await until('burial', async () => (await home.ticketState(ticket)) === 'buried')
  writeFileSync(join(home.algorithms, 'moody', 'good'), '')
  expect(await home.broker.ask(`kick-job ${ticket}\r\n`)).toBe('KICKED\r\n')
  await worker.waitFor('success', (line) => line.event === 'job_published')
  expect(home.status(uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1, outcome: 'success' }] })
})

test('exit 65 is buried at once and says that the input is bad', async () => {
  const home = await install()
  home.addAlgorithm('picky', 'echo "series is missing" >&2; exit 65')
  const worker = await home.startWorker()
  const uuid = await home.putJob('picky')
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(home.status(uuid)).toMatchObject({
    state: 'failed',
    reason: 'exit 65: the input is bad',
    attempts: [{ stderr_tail: 'series is missing\n' }],
  })
})

test('a death by signal is told by the name of the signal (B11)', async () => {
  const home = await install()
  home.addAlgorithm('crash', 'kill -SEGV $$')
  const worker = await home.startWorker()
  const uuid = await home.putJob('crash', {}, { header: { max_attempts: 1 } })
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(home.status(uuid)).toMatchObject({
    attempts: [{ outcome: 'signalled', signal: 'SIGSEGV', error: 'died by SIGSEGV', exit_code: null }],
  })
})

test('background work of an algorithm is ended with it: nothing escapes supervision (B9)', async () => {
  const home = await install()
  home.addAlgorithm('leaver', 'sleep 300 & setsid sleep 300 & (setsid sh -c "sleep 300 &") ; echo 1')
  const worker = await home.startWorker()
  const uuid = await home.putJob('leaver')
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(findRuns(home.results)).toEqual([])
  const kill = home.status(uuid)?.attempts[0]?.kill
  expect(kill).toMatchObject({ survivors: [], method: 'proc' })
  expect(kill?.signals[0]?.processes).toBeGreaterThanOrEqual(3)
})

test('an algorithm inherits no descriptor of the worker and is told its full TTR (B7, B8)', async () => {
  const home = await install()
  home.addAlgorithm(
    'look',
    'ls -l /proc/self/fd | grep -c socket:; echo "ttr=$QWORKER_TTR arg=$1"',
    'command: [./run.sh, "{ttr}"]',
  )
  const worker = await home.startWorker()
  const uuid = await home.putJob('look', {}, { ttr: 7 })
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(home.result(uuid)?.result).toBe('0\nttr=7 arg=7\n')
})

test('an algorithm that vanished while the worker runs fails its job in clear words, and others run', async () => {
  const home = await install()
  home.addAlgorithm('gone', 'echo 1')
  home.addAlgorithm('ok', 'echo 1')
  const worker = await home.startWorker()
  rmSync(join(home.algorithms, 'gone'), { recursive: true })
  const uuid = await home.putJob('gone', {}, { header: { max_attempts: 2 } })
  const other = await home.putJob('ok')
  await until('burial', () => home.status(uuid)?.state === 'failed')
  expect(home.status(uuid)?.reason).toMatch(/run\.sh is not there \(attempt 2 of 2\)/)
  await worker.waitFor('the other job', (line) => line.event === 'job_settled' && line.uuid === other)
})

test('an algorithm that is not executable is told at the start, and its jobs are buried with the remedy', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  home.addAlgorithm('plain', 'echo 1', 'command: [./data.txt]')
  writeFileSync(join(home.algorithms, 'plain', 'data.txt'), 'x', { mode: 0o644 })
  const worker = await home.startWorker()
  expect(worker.events.find(({ event }) => event === 'algorithm_problem')?.problem).toMatch(/not executable.*chmod \+x/)
  const uuid = await home.putJob('plain')
  await until('burial', () => home.status(uuid)?.state === 'failed')
  expect(home.status(uuid)?.reason).toMatch(/algorithm plain cannot be run here.*chmod \+x/)
})

test('SIGHUP reads the algorithms again', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  const worker = await home.startWorker()
  home.addAlgorithm('fresh', 'echo 2')
  worker.child.kill('SIGHUP')
  await worker.waitFor('the reading', (line) => line.event === 'algorithms_read')
  const uuid = await home.putJob('fresh')
  await worker.waitFor('the job', (line) => line.event === 'job_published' && line.uuid === uuid)
})

test('SIGHUP while the algorithm folder is gone keeps the algorithms that were read before', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1', 'command: [sh, -c, echo 1]')
  const worker = await home.startWorker()
  renameSync(home.algorithms, `${home.algorithms}.away`)
  worker.child.kill('SIGHUP')
  const { problem } = await worker.waitFor('the problem', (line) => line.event === 'algorithm_problem')
  expect(problem).toMatch(/cannot be read.*the algorithms read before stay in use/)
  const uuid = await home.putJob('ok')
  await worker.waitFor('the job', (line) => line.event === 'job_published' && line.uuid === uuid)
})

test.each(['json', 'text'])('a %s log that nobody reads holds no job up', async (format) => {
  const home = await install({ CONCURRENCY: '1', HTTP_PORT: 'off' })
  home.addAlgorithm('talk', 'echo 1')
  const worker = await home.startWorker({ LOG_FORMAT: format })
  worker.child.stdout?.pause()
  // Each of these leaves some hundred bytes in the log; a pipe takes 64 KiB.
  const tickets: string[] = []
  for (let i = 0; i < 400; i++) tickets.push(await home.put(`no work package ${'x'.repeat(400)}`))
  const uuid = await home.putJob('talk')
  await until('the job behind them', () => home.result(uuid) !== undefined)
  expect(await home.ticketState(tickets.at(-1) ?? '')).toBe('buried')
  worker.child.stdout?.resume()
})

test('several slots work on several tubes at once (B16)', async () => {
  const home = await install()
  home.addAlgorithm(
    'meet',
    'touch "$(dirname "$0")/$QWORKER_TUBE"; while ! test -e "$(dirname "$0")/$(cat input.json | tr -d \'"\')"; do sleep 0.05; done; echo 1',
  )
  const worker = await home.startWorker({}, ['-j', '2', '--tube', 'one', '--tube', 'two'])
  await home.putJob('meet', 'two', { tube: 'one', ttr: 30 })
  await home.putJob('meet', 'one', { tube: 'two', ttr: 30 })
  await until('both', () => worker.events.filter(({ event }) => event === 'job_published').length === 2)
})

test('--once takes one job and ends; its exit code tells whether the job is complete', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  home.addAlgorithm('bad', 'exit 3')
  const kept = await home.putJob('ok')
  const worker = await home.startWorker({}, ['--once'])
  expect(await worker.exited).toEqual([0, null])
  expect(home.result(kept)).toBeDefined()
  await home.putJob('bad')
  expect(await (await home.startWorker({}, ['--once'])).exited).toEqual([1, null])
})

test('a job that was published before its worker died is deleted, not run again', async () => {
  const home = await install()
  home.addAlgorithm('count', 'echo x >> "$(dirname "$0")/runs"; echo 1')
  const worker = await home.startWorker()
  const uuid = await home.putJob('count')
  await worker.waitFor('published', (line) => line.event === 'job_settled')
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"count"},{}]`)
  await worker.waitFor('seen again', (line) => line.event === 'job_already_complete')
  await until('gone', async () => (await home.ticketState(ticket)) === 'gone')
  expect(readFileSync(join(home.algorithms, 'count', 'runs'), 'utf8')).toBe('x\n')
})

test('two jobs with one uuid never run at the same time', async () => {
  const home = await install()
  home.addAlgorithm(
    'alone',
    'mkdir "$(dirname "$0")/lock" || exit 9; sleep 0.3; rmdir "$(dirname "$0")/lock"; exit 4',
    'max_attempts: 4',
  )
  const worker = await home.startWorker()
  const uuid = newUuid()
  await home.putJob('alone', {}, { uuid })
  await home.putJob('alone', {}, { uuid })
  await worker.waitFor(
    'burial',
    (line) => line.event === 'job_settled' && (line.settlement as { action: string }).action === 'bury',
  )
  expect(home.status(uuid)?.attempts.map((attempt) => attempt.exit_code)).toEqual([4, 4, 4, 4])
})

test('a full disk releases the job without spending an attempt, and it completes when there is room again', async (context) => {
  const home = await install({ CONCURRENCY: '1' })
  const { execFileSync } = await import('node:child_process')
  const small = join(home.base, 'small')
  mkdirSync(small)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', small], { stdio: 'pipe' })
  } catch {
    return leaveOut(context, 'a small tmpfs cannot be mounted here: root with CAP_SYS_ADMIN is needed')
  }
  try {
    home.addAlgorithm('ok', 'echo 1')
    const worker = await home.startWorker({ RESULT_BASEDIR: small })
    writeFileSync(join(small, 'ballast'), Buffer.alloc(512 * 1024))
    try {
      writeFileSync(join(small, 'ballast2'), Buffer.alloc(1024 * 1024))
    } catch {
      // full now
    }
    const uuid = await home.putJob('ok', { text: 'x'.repeat(20_000) })
    const fault = await worker.waitFor('the fault', ({ event }) => event === 'publish_failed' || event === 'slot_fault')
    expect(fault.error).toMatch(/ENOSPC|no space|full/i)
    rmSync(join(small, 'ballast'))
    rmSync(join(small, 'ballast2'), { force: true })
    await worker.waitFor('completion', (line) => line.event === 'job_published' && line.uuid === uuid)
    expect(JSON.parse(readFileSync(join(small, uuid.slice(0, 2), uuid, 'status.json'), 'utf8')).attempts).toMatchObject(
      [{ attempt: 1 }],
    )
    await worker.stop()
  } finally {
    execFileSync('umount', ['-l', small])
  }
})

test('no job is taken while what the last one left is removed: another slot may have it meanwhile', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('leaves', 'mkdir d; cd d; seq 1 30000 | xargs touch', 'outputs: []')
  home.addAlgorithm('next', 'echo 1')
  const [uuid, nextUuid] = [newUuid(), newUuid()]
  const first = await home.put(`[{"uuid":"${uuid}","type":"leaves"},{}]`, { ttr: 60 })
  const next = await home.put(`[{"uuid":"${nextUuid}","type":"next"},{}]`)
  await home.startWorker()
  const work = join(home.results, '.work')
  const isLeft = () => readdirSync(work).some((id) => readdirSync(join(work, id)).some((name) => name.startsWith(uuid)))
  const seen = new Set<string>()
  await until('the second', async () => {
    if ((await home.ticketState(first)) === 'gone') {
      const state = await home.ticketState(next)
      if (isLeft()) seen.add(state)
    }
    return home.result(nextUuid) !== undefined
  })
  expect([...seen]).not.toContain('reserved')
})
