import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, type TestContext, test } from 'vitest'
import { addRuns, eventsOf, healthOf, letGo, type PutJob, putOne, untilGone, untilWaiting } from '../support/gated.ts'
import { type Installation, install, leaveOut, PROJECT, type RunningWorker, until } from '../support/installation.ts'

/** What befalls a machine. `undo` may be called twice: the end of a test calls it too. */
interface Fault {
  readonly name: string
  readonly reason: RegExp
  /** mounts a small disk of its own for the results */
  readonly ownDisk?: boolean
  strike(home: Installation, worker: RunningWorker): Promise<void> | void
  undo(home: Installation, worker: RunningWorker): Promise<void> | void
}

const away = (home: Installation) => `${home.results}.away`

const VANISHED: Fault = {
  name: 'results that are renamed away',
  reason: /result directory .* (does not exist|is not there|not reach)|ENOENT|no such/i,
  strike: (home) => renameSync(home.results, away(home)),
  undo: (home) => {
    if (existsSync(away(home))) renameSync(away(home), home.results)
  },
}

const REPLACED: Fault = {
  name: 'another directory in the place of the results, as an unmount leaves it',
  reason: /is not the one that it was at the start: mount its disk again/,
  strike: (home) => {
    renameSync(home.results, away(home))
    mkdirSync(home.results)
  },
  undo: (home) => {
    if (!existsSync(away(home))) return
    // Nothing was written beside the disk but folders, in which the logs of a run that ended were to be saved.
    const written = readdirSync(home.results, { recursive: true, withFileTypes: true })
    expect(
      written.filter((entry) => !entry.isDirectory() || !join(entry.parentPath, entry.name).includes('/.work')),
    ).toEqual([])
    rmSync(home.results, { recursive: true })
    renameSync(away(home), home.results)
  },
}

const READ_ONLY: Fault = {
  name: 'results on a disk that is read-only',
  reason: /EROFS|read-only/i,
  // Bound over itself: the directory is the same, and what is open for writing does not hinder.
  strike: ({ results }) => {
    execFileSync('mount', ['--bind', results, results])
    execFileSync('mount', ['-o', 'remount,bind,ro', results])
  },
  undo: ({ results }) => {
    if (isMounted(results)) execFileSync('umount', [results])
  },
}

const FULL: Fault = {
  name: 'results on a disk that is full',
  reason: /ENOSPC|no space|full/i,
  ownDisk: true,
  strike: ({ results }) => {
    for (const size of [65_536, 4096, 1]) {
      try {
        for (let i = 0; ; i++) writeFileSync(join(results, `.ballast-${size}-${i}`), Buffer.alloc(size))
      } catch {
        // Of this size no more.
      }
    }
  },
  undo: ({ results }) => {
    for (const name of readdirSync(results)) if (name.startsWith('.ballast')) rmSync(join(results, name))
  },
}

const FEW_FILES: Fault = {
  name: 'too few files that may be open',
  reason: /too many open files|EMFILE/i,
  strike: (_home, { pid }) => {
    const open = readdirSync(`/proc/${pid}/fd`).map(Number)
    let limit = 1
    // One number below the limit is free; the slots that leave give back a few, for questions over HTTP.
    while (limit - open.filter((fd) => fd < limit).length < 1) limit++
    execFileSync('prlimit', ['--pid', String(pid), `--nofile=${limit}:`])
  },
  undo: (_home, { pid, child }) => {
    // Its number may be another's as soon as it has ended.
    if (child.exitCode === null && child.signalCode === null)
      execFileSync('prlimit', ['--pid', String(pid), '--nofile=1024:'])
  },
}

const lockers = new WeakMap<RunningWorker, ReturnType<typeof spawn>>()
const LOCKED: Fault = {
  name: 'a tracker that another process has locked',
  reason: /another process has held the tracker .* for more than 10 s/,
  async strike(home, worker) {
    const program = join(PROJECT, 'test', 'worker', 'lock-tracker.js')
    const child = spawn(process.execPath, [program, join(home.results, '.state', 'tracker.db')], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    lockers.set(worker, child)
    const [said] = await once(child.stdout, 'data')
    expect(String(said)).toBe('locked\n')
  },
  async undo(_home, worker) {
    const child = lockers.get(worker)
    if (child === undefined || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  },
}

const named = (fault: Fault): [string, Fault] => [fault.name, fault]

function isMounted(path: string): boolean {
  return readFileSync('/proc/self/mounts', 'utf8').includes(` ${path} `)
}

async function start(fault: Fault, context: TestContext, slots: number) {
  const home = await install({ CONCURRENCY: String(slots) })
  if (fault.ownDisk || fault === READ_ONLY) mountOrLeaveOut(home, context, fault)
  addRuns(home)
  const worker = await home.startWorker()
  onTestFinished(async () => {
    await fault.undo(home, worker)
    if (fault.ownDisk) {
      worker.child.kill('SIGTERM')
      worker.child.kill('SIGTERM')
      await worker.exited
      execFileSync('umount', [home.results])
    }
  })
  return { home, worker }
}

function mountOrLeaveOut({ results }: Installation, context: TestContext, fault: Fault): void {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', results], { stdio: 'pipe' })
  } catch {
    leaveOut(context, `${fault.name}: nothing can be mounted here, root with CAP_SYS_ADMIN is needed`)
  }
  if (!fault.ownDisk) execFileSync('umount', [results])
}

/** Says why, in log and health, and has no slot that waits for a job. */
async function untilPaused(home: Installation, worker: RunningWorker, fault: Fault): Promise<void> {
  const { reason } = await worker.waitFor('the pause', ({ event }) => event === 'worker_paused')
  expect(reason).toMatch(fault.reason)
  await until('no slot is busy', async () => (await healthOf(worker)).slots.busy === 0)
  expect(await healthOf(worker)).toMatchObject({ status: 'paused', reason: expect.stringMatching(fault.reason) })
  await untilWaiting(home, 0)
}

const delayed = async (home: Installation) => home.broker.stat('current-jobs-delayed')

/** The jobs that were given back are ready again, and stay so like the others. */
async function expectUntouched(home: Installation, worker: RunningWorker, jobs: PutJob[]): Promise<void> {
  const taken = () => eventsOf(worker, 'job_dequeued').length
  const before = taken()
  await until('the delays are over', async () => (await delayed(home)) === 0)
  for (const { ticket } of jobs) expect(await home.ticketState(ticket)).toBe('ready')
  expect(taken()).toBe(before)
  expect((await healthOf(worker)).status).toBe('paused')
}

async function expectMended(home: Installation, worker: RunningWorker, jobs: PutJob[]): Promise<void> {
  await worker.waitFor('the end of the pause', ({ event }) => event === 'worker_resumed')
  await untilGone(home, ...jobs)
  for (const { uuid } of jobs) {
    expect(home.status(uuid)?.state).toBe('complete')
    expect(home.status(uuid)?.attempts.map(({ attempt }) => attempt)).toEqual([1])
  }
  await until('it is well', async () => (await healthOf(worker)).status === 'ok')
}

test.for([VANISHED, REPLACED, READ_ONLY, FULL, FEW_FILES].map(named))(
  '%s: the job in hand is given back, no job is taken, and all complete when it is over',
  { timeout: 180_000 },
  async ([, fault], context) => {
    const { home, worker } = await start(fault, context, 3)
    const inHand = await putOne(home, 'waits')
    await worker.waitFor('the run', ({ event }) => event === 'run_started')
    await untilWaiting(home, 2)
    await fault.strike(home, worker)
    letGo(home)
    await worker.waitFor('the pause', ({ event }) => event === 'worker_paused')
    const others = [await putOne(home, 'ok'), await putOne(home, 'ok'), await putOne(home, 'ok')]
    await untilPaused(home, worker, fault)
    await expectUntouched(home, worker, [inHand, ...others])
    expect(worker.events.filter(({ event }) => event === 'publish_failed' || event === 'slot_fault')).toHaveLength(1)
    await fault.undo(home, worker)
    await expectMended(home, worker, [inHand, ...others])
  },
)

test.for([VANISHED, REPLACED, READ_ONLY, FULL, FEW_FILES, LOCKED].map(named))(
  '%s while the worker is idle: what is taken is given back, then no job is taken until it is over',
  { timeout: 180_000 },
  async ([, fault], context) => {
    const { home, worker } = await start(fault, context, 2)
    await untilWaiting(home, 2)
    await fault.strike(home, worker)
    const first = [await putOne(home, 'ok'), await putOne(home, 'ok')]
    await untilPaused(home, worker, fault)
    const others = [await putOne(home, 'ok'), await putOne(home, 'ok')]
    await expectUntouched(home, worker, [...first, ...others])
    if (fault === REPLACED) expect(readdirSync(home.results)).toEqual([])
    await fault.undo(home, worker)
    await expectMended(home, worker, [...first, ...others])
  },
)

test('a tracker that is locked while a job runs: its result is published once, it is not run again, and all complete', {
  timeout: 180_000,
}, async (context) => {
  const { home, worker } = await start(LOCKED, context, 2)
  const inHand = await putOne(home, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await LOCKED.strike(home, worker)
  letGo(home)
  await untilPaused(home, worker, LOCKED)
  const other = await putOne(home, 'ok')
  await expectUntouched(home, worker, [inHand, other])
  await LOCKED.undo(home, worker)
  await expectMended(home, worker, [inHand, other])
  expect(readFileSync(join(home.algorithms, 'waits', 'runs'), 'utf8')).toBe('1\n')
})

test('TERM ends a worker that is paused, and the pause is not called over', async (context) => {
  const { home, worker } = await start(VANISHED, context, 2)
  await VANISHED.strike(home, worker)
  await putOne(home, 'ok')
  await untilPaused(home, worker, VANISHED)
  expect(await worker.stop()).toBe(0)
  expect(eventsOf(worker, 'worker_resumed')).toEqual([])
})

test('a worker that is quiet and at fault takes jobs only when both are over, and says what is left', {
  timeout: 180_000,
}, async (context) => {
  const { home, worker } = await start(VANISHED, context, 2)
  const inHand = await putOne(home, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  worker.child.kill('SIGTSTP')
  await worker.waitFor('quiet', ({ event }) => event === 'worker_quiet')
  await VANISHED.strike(home, worker)
  letGo(home)
  await untilPaused(home, worker, VANISHED)
  await VANISHED.undo(home, worker)
  await until('what is left', () => eventsOf(worker, 'worker_quiet').length === 2)
  expect(await healthOf(worker)).toMatchObject({ status: 'quiet', reason: expect.stringContaining('SIGTSTP') })
  expect(eventsOf(worker, 'worker_resumed')).toEqual([])
  await until('its delay is over', async () => (await home.ticketState(inHand.ticket)) === 'ready')
  worker.child.kill('SIGCONT')
  await expectMended(home, worker, [inHand])
})

test('a fault of one job only does not pause the worker, and its delay grows each time', {
  timeout: 180_000,
}, async (context) => {
  const { home, worker } = await start(VANISHED, context, 1)
  const job = await putOne(home, 'waits')
  const dir = join(home.results, job.uuid.slice(0, 2), job.uuid)
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  mkdirSync(dir, { recursive: true })
  try {
    execFileSync('chattr', ['+i', dir], { stdio: 'pipe' })
  } catch {
    letGo(home)
    return leaveOut(
      context,
      'a directory cannot be made immutable here: root and a file system with chattr +i are needed',
    )
  }
  const loosen = () => execFileSync('chattr', ['-i', dir])
  try {
    letGo(home)
    for (const seconds of [5, 10]) {
      await until(`a delay of ${seconds} s`, async () => (await delayOf(home, job)) === seconds)
      const other = await putOne(home, 'ok')
      await untilGone(home, other)
    }
  } finally {
    loosen()
  }
  await untilGone(home, job)
  expect(home.status(job.uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1 }] })
  expect(eventsOf(worker, 'publish_failed').length).toBeGreaterThanOrEqual(2)
  expect(eventsOf(worker, 'worker_paused')).toEqual([])
})

async function delayOf(home: Installation, { ticket }: PutJob): Promise<number> {
  const answer = await home.broker.ask(`stats-job ${ticket}\r\n`, /NOT_FOUND\r\n$|\n\r\n$/)
  return /^state: delayed$/m.test(answer) ? Number(/^delay: (\d+)$/m.exec(answer)?.[1]) : -1
}
