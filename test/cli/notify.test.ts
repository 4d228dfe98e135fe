import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type Notifier, openNotifier } from '../../src/cli/notify.ts'
import { type ServiceEnvironment, serviceEnvironment } from '../../src/config.ts'
import { findRuns, install, PROJECT, until } from '../support/installation.ts'
import { needTools, startManager } from '../support/manager.ts'

const PATH = process.env.PATH ?? ''
interface Opened {
  readonly notifier: Notifier
  readonly problems: string[]
  /** what the notifier takes for the time, in milliseconds */
  readonly clock: { now: number }
}

function open(service: Partial<ServiceEnvironment>): Opened {
  const problems: string[] = []
  const clock = { now: 1000 }
  const notifier = openNotifier({
    service: { notifySocket: undefined, watchdogMs: undefined, path: PATH, ...service },
    onProblem: (problem) => problems.push(problem),
    now: () => clock.now,
  })
  return { notifier, problems, clock }
}

/** A systemd-notify that notes its arguments and does what a script says. */
function makeHelper(script: string): { path: string; log: () => string[] } {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-helper-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const log = join(dir, 'log')
  mkdirSync(join(dir, 'bin'))
  writeFileSync(log, '')
  const program = `#!/bin/sh\nHERE=${dir}\n(IFS='|'; echo "$*") >> ${log}\n${script}\n`
  writeFileSync(join(dir, 'bin', 'systemd-notify'), program, { mode: 0o755 })
  return {
    path: `${join(dir, 'bin')}:${PATH}`,
    log: () => readFileSync(log, 'utf8').split('\n').slice(0, -1),
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

test('what systemd says in the environment is understood', () => {
  const plain = { notifySocket: undefined, watchdogMs: undefined, path: '/usr/local/bin:/usr/bin:/bin' }
  expect(serviceEnvironment({})).toEqual(plain)
  expect(serviceEnvironment({ NOTIFY_SOCKET: '' })).toEqual(plain)
  const env = { NOTIFY_SOCKET: '/run/systemd/notify', WATCHDOG_USEC: '90000000', WATCHDOG_PID: '17', PATH: '/bin' }
  const service = { notifySocket: '/run/systemd/notify', watchdogMs: 90_000, path: '/bin' }
  expect(serviceEnvironment(env, 17)).toEqual(service)
  expect(serviceEnvironment({ ...env, WATCHDOG_PID: undefined }, 17)).toEqual(service)
  // The watchdog of the shell that started us is not ours.
  expect(serviceEnvironment(env, 18)).toEqual({ ...service, watchdogMs: undefined })
  for (const WATCHDOG_USEC of ['0', '', '-1', 'infinity', '1e6', '9'.repeat(20)])
    expect(serviceEnvironment({ ...env, WATCHDOG_USEC }, 17).watchdogMs, WATCHDOG_USEC).toBeUndefined()
})

test('without a manager that listens nothing is started and nothing is said', async () => {
  const helper = makeHelper('')
  const { notifier, problems } = open({ path: helper.path, watchdogMs: 1 })
  notifier.ready()
  notifier.feed()
  notifier.status('idle')
  notifier.reloading()
  notifier.stopping(1)
  await notifier.close()
  expect([...helper.log(), ...problems]).toEqual([])
})

test('systemd hears exactly what is said, in its order, on a socket with a path', async (context) => {
  needTools(context)
  const manager = await startManager()
  const { notifier, problems } = open({ notifySocket: manager.socket, watchdogMs: 90_000 })
  for (const say of [
    () => notifier.ready(),
    () => notifier.feed(),
    () => notifier.status('2 slots, 1 busy: 100 % of "a"'),
    () => notifier.reloading(),
    () => notifier.ready(),
    () => notifier.stopping(60.5),
  ]) {
    say()
    await notifier.close()
  }
  await until('all came', () => manager.heard.length >= 6)
  const [, , , reloading = ''] = manager.heard
  expect(reloading).toMatch(/^RELOADING=1\|MONOTONIC_USEC=\d+$/)
  // The clock of the manager: CLOCK_MONOTONIC, which is the time since the machine's start where nothing was suspended.
  const monotonic = Number(/\d+$/.exec(reloading)?.[0]) / 1e6
  expect(Math.abs(monotonic - Number(process.hrtime.bigint()) / 1e9)).toBeLessThan(60)
  expect(manager.heard).toEqual([
    'READY=1',
    'WATCHDOG=1',
    'STATUS=2 slots, 1 busy: 100 % of "a"',
    reloading,
    'READY=1',
    'STOPPING=1|EXTEND_TIMEOUT_USEC=60500000',
  ])
  // The helper stays until the manager has read what it said, else its unit may not be found.
  expect(manager.raw.filter((line) => line === 'BARRIER=1')).toHaveLength(6)
  expect(problems).toEqual([])
})

test('systemd hears it on an abstract socket too', async (context) => {
  needTools(context)
  const manager = await startManager(`@qworker-test-${process.pid}`)
  const { notifier, problems } = open({ notifySocket: manager.socket })
  notifier.ready()
  await notifier.close()
  await until('it came', () => manager.heard.length > 0)
  expect(manager.heard).toEqual(['READY=1'])
  expect(problems).toEqual([])
})

test('a status cannot smuggle another message, and is short', async (context) => {
  needTools(context)
  const manager = await startManager()
  const { notifier } = open({ notifySocket: manager.socket })
  notifier.status('a\nMAINPID=1\r\n\0\u2028\ud800b')
  await notifier.close()
  notifier.status('ö'.repeat(1000))
  await notifier.close()
  notifier.status('--help')
  await notifier.close()
  await until('all came', () => manager.heard.length >= 3)
  expect(manager.heard).toEqual(['STATUS=a MAINPID=1 b', `STATUS=${'ö'.repeat(200)}`, 'STATUS=--help'])
})

test('the watchdog is fed by those who call, at most once in a quarter of its time, and by nobody else', async () => {
  const helper = makeHelper('')
  const { notifier, clock } = open({ notifySocket: '/nowhere', path: helper.path, watchdogMs: 90_000 })
  const feedUntil = async (now: number, step: number) => {
    for (; clock.now < now; clock.now += step) {
      notifier.feed()
      await notifier.close()
    }
  }
  await feedUntil(1000 + 90_000, 1000)
  expect(helper.log()).toEqual(Array(4).fill('WATCHDOG=1'))
  // A reserve that returns each 20 s: every second one feeds, in time for half of the watchdog.
  await feedUntil(1000 + 290_000, 20_000)
  expect(helper.log()).toHaveLength(4 + 5)
  clock.now += 1_000_000
  notifier.ready()
  await notifier.close()
  expect(helper.log().at(-1)).toBe('READY=1')
})

test('feeding without a watchdog says nothing', async () => {
  const helper = makeHelper('')
  const { notifier, clock } = open({ notifySocket: '/nowhere', path: helper.path })
  for (; clock.now < 1e6; clock.now += 1000) notifier.feed()
  await notifier.close()
  expect(helper.log()).toEqual([])
})

test('one helper at a time; of what is said meanwhile the newest counts, and no state is lost', async () => {
  const helper = makeHelper('mkdir $HERE/one || echo two at a time >> $HERE/log; sleep 0.1; rmdir $HERE/one')
  const { notifier, clock, problems } = open({ notifySocket: '/nowhere', path: helper.path, watchdogMs: 1000 })
  notifier.ready()
  for (let i = 0; i < 50; i++) {
    notifier.reloading()
    notifier.status(`reading ${i}`)
    notifier.ready()
    clock.now += 1000
    notifier.feed()
  }
  await notifier.close()
  const first = helper.log().map((line) => line.replace(/MONOTONIC_USEC=\d+/, 'MONOTONIC_USEC'))
  expect(first).toEqual(['READY=1', 'RELOADING=1|MONOTONIC_USEC|STATUS=reading 49', 'READY=1'])
  notifier.status('busy')
  notifier.reloading()
  notifier.stopping(5)
  notifier.ready()
  notifier.stopping(1)
  await notifier.close()
  expect(helper.log().slice(3)).toEqual(['STATUS=busy', 'STOPPING=1|EXTEND_TIMEOUT_USEC=1000000'])
  expect(problems).toEqual([])
})

test('what did not get through is told once, and said again by the feed after a while', async () => {
  const helper = makeHelper('[ -e $HERE/up ] || { echo "Failed: nobody there" >&2; exit 1; }')
  const { notifier, clock, problems } = open({ notifySocket: '/nowhere', path: helper.path, watchdogMs: 90_000 })
  notifier.ready()
  await notifier.close()
  notifier.status('idle')
  await notifier.close()
  notifier.feed()
  await notifier.close()
  expect(problems).toEqual(['systemd was not told READY=1: systemd-notify: Failed: nobody there'])
  expect(helper.log()).not.toContain('WATCHDOG=1')
  writeFileSync(join(helper.path.split('/bin:')[0] ?? '', 'up'), '')
  clock.now += 5000
  notifier.feed()
  await notifier.close()
  expect(helper.log().at(-1)).toBe('READY=1|STATUS=idle|WATCHDOG=1')
  const before = helper.log().length
  clock.now += 5000
  notifier.feed()
  await notifier.close()
  expect(helper.log()).toHaveLength(before)
  expect(problems).toHaveLength(1)
})

test.for<[string, Partial<ServiceEnvironment>, RegExp]>([
  ['no helper in PATH', { path: '/nowhere' }, /no systemd-notify in \/nowhere/],
  ['no such socket', { notifySocket: '/nowhere/socket' }, /systemd-notify: .*No such file or directory/],
  ['nonsense in NOTIFY_SOCKET', { notifySocket: 'nonsense' }, /systemd-notify: /],
])('%s is told and harms nothing', async ([, service, message], context) => {
  if (service.path === undefined) needTools(context)
  const { notifier, problems } = open({ notifySocket: '/nowhere/socket', ...service })
  notifier.ready()
  await notifier.close()
  expect(problems).toEqual([expect.stringMatching(message)])
})

test('a manager that is deaf holds nobody for ever', async (context) => {
  needTools(context)
  const manager = await startManager(undefined, 'deaf')
  const { notifier, problems } = open({ notifySocket: manager.socket })
  const began = performance.now()
  notifier.ready()
  await notifier.close()
  expect(performance.now() - began).toBeLessThan(15_000)
  expect(problems).toEqual([expect.stringContaining('systemd was not told READY=1')])
})

test('a helper that hangs is ended, and the next one is not held up', async () => {
  const helper = makeHelper('case "$1" in READY=1) echo $$ > $HERE/pid; exec sleep 100;; esac')
  const { notifier, problems } = open({ notifySocket: '/nowhere', path: helper.path })
  notifier.ready()
  await notifier.close()
  expect(problems).toEqual(['systemd was not told READY=1: systemd-notify did not end within 6 s'])
  const pid = Number(readFileSync(join(helper.path.split('/bin:')[0] ?? '', 'pid'), 'utf8'))
  await until('it is gone', () => !isAlive(pid))
  notifier.stopping(1)
  await notifier.close()
  expect(helper.log()).toEqual(['READY=1', 'STOPPING=1|EXTEND_TIMEOUT_USEC=1000000'])
})

test('where descriptors are short it says so and goes on', async (context) => {
  needTools(context)
  const manager = await startManager()
  const program = join(PROJECT, 'test/cli/short-of-descriptors.js')
  const { stdout, stderr } = spawnSync('/bin/sh', ['-c', 'ulimit -n 100; exec "$@"', 'sh', process.execPath, program], {
    env: { PATH, NOTIFY_SOCKET: manager.socket },
    encoding: 'utf8',
  })
  expect(stdout, stderr).toMatch(/^problem: systemd was not told READY=1: .*EMFILE\nfreed\nclosed\n$/)
  await until('it came', () => manager.heard.length > 0)
  expect(manager.heard).toEqual(['READY=1'])
})

test('an algorithm cannot speak to systemd in our name by what it finds in its environment', async () => {
  const at = await install()
  at.addAlgorithm('look', 'n=$(env | grep -cE "NOTIFY_SOCKET|WATCHDOG_"); echo "$n"')
  const worker = await at.startWorker({ NOTIFY_SOCKET: join(at.base, 'none'), WATCHDOG_USEC: '9e7', WATCHDOG_PID: '1' })
  const uuid = await at.putJob('look')
  await until('it is complete', () => at.result(uuid) !== undefined)
  expect(at.result(uuid)?.result).toBe(0)
  expect(await worker.stop()).toBe(0)
  expect(findRuns(at.results)).toEqual([])
})
