import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, type TestContext, test } from 'vitest'
import { type Installation, install, leaveOut, newUuid, PROJECT, until } from '../support/installation.ts'

const LOCKER = join(PROJECT, 'test', 'worker', 'lock-tracker.js')
const pathOf = (home: Installation) => join(home.results, '.state', 'tracker.db')

/** A tracker that was used, and whose worker has ended. */
async function makeUsed(home: Installation): Promise<void> {
  home.addAlgorithm('job', 'echo 1')
  const worker = await home.startWorker()
  const uuid = await home.putJob('job')
  await until('its completion', () => home.status(uuid)?.state === 'complete')
  expect(await worker.stop()).toBe(0)
}

function lock(context: TestContext, path: string): void {
  const came = spawnSync('chattr', ['+i', path], { encoding: 'utf8' })
  if (came.status !== 0) leaveOut(context, `chattr +i: ${came.error?.message ?? came.stderr.trim()}`)
  onTestFinished(() => void spawnSync('chattr', ['-i', path]))
}

const spoilers: [string, RegExp, (home: Installation, context: TestContext) => void][] = [
  [
    'a file that is no database',
    /tracker \S+tracker\.db is damaged or no database .*stop all workers that use it and move it away/,
    (home) => writeFileSync(pathOf(home), 'this is no database\n'.repeat(500)),
  ],
  [
    'a damaged file',
    /tracker \S+tracker\.db is damaged or no database .*stop all workers that use it and move it away/,
    (home) => {
      const bytes = readFileSync(pathOf(home))
      bytes.fill(0xff, bytes.length - 4096)
      writeFileSync(pathOf(home), bytes)
      for (const more of ['-wal', '-shm']) rmSync(pathOf(home) + more, { force: true })
    },
  ],
  [
    'a directory in its place',
    /tracker.*\S+tracker\.db.*directory/,
    (home) => {
      rmSync(pathOf(home))
      mkdirSync(pathOf(home))
    },
  ],
  [
    'a file that may not be changed',
    /tracker \S+tracker\.db cannot be written .*give this user write permission/,
    (home, context) => lock(context, pathOf(home)),
  ],
  [
    'a folder that may not be changed',
    /tracker \S+tracker\.db cannot be written .*give this user write permission/,
    (home, context) => {
      // With these there SQLite needs no more of the folder.
      for (const more of ['-wal', '-shm']) rmSync(pathOf(home) + more, { force: true })
      lock(context, join(home.results, '.state'))
    },
  ],
]

test.for(spoilers)(
  'with %s for a tracker a worker ends with 73, says what to do, and touches no job',
  async ([, message, spoil], context) => {
    const home = await install({ CONCURRENCY: '1' })
    await makeUsed(home)
    const uuid = newUuid()
    const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`)
    spoil(home, context)
    const failure = await home.startWorker().then(
      () => undefined,
      (error: Error) => error.message,
    )
    expect(failure).toMatch(/^worker ended \(73\)/)
    expect(failure).toMatch(message)
    expect(failure).toMatch(/^qworker: /m)
    const stats = await home.broker.ask(`stats-job ${ticket}\r\n`, /\n\r\n$/)
    expect(stats).toMatch(/^state: ready$/m)
    expect(stats).toMatch(/^reserves: 0$/m)
    expect(home.status(uuid)).toBeUndefined()
  },
)

test('a job that another worker completes between two looks at it, while the tracker lets nobody write, is not run again', async () => {
  const home = await install({ CONCURRENCY: '1' })
  const gate = join(home.base, 'gate')
  const runs = join(home.base, 'runs')
  home.addAlgorithm('job', `echo run >> ${runs}; until [ -e ${gate} ]; do sleep 0.05; done; echo 1`)
  const first = await home.startWorker()
  const uuid = newUuid()
  const body = `[{"uuid":"${uuid}","type":"job"},{}]`
  await home.put(body)
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  const second = await home.startWorker()
  const locker = spawn(process.execPath, [LOCKER, pathOf(home)], { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void locker.kill('SIGKILL'))
  await once(locker.stdout, 'data')
  const again = await home.put(body)
  await until('the second has it too', async () => (await home.ticketState(again)) === 'reserved')
  writeFileSync(gate, '')
  await until('the result', () => home.result(uuid) !== undefined)
  // It is to write last.
  second.child.kill('SIGSTOP')
  locker.kill('SIGKILL')
  await first.waitFor('the end of the job', ({ event }) => event === 'job_settled')
  second.child.kill('SIGCONT')
  await second.waitFor('the end of the other', ({ event }) => event === 'job_settled')
  expect(second.events.map(({ event }) => event)).toContain('job_already_complete')
  expect(readFileSync(runs, 'utf8')).toBe('run\n')
})
