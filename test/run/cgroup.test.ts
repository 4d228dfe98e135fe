import { type ChildProcess, type StdioOptions, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, type TestContext, test } from 'vitest'
import { ENTRY_FD, entryLauncher, type GroupNotes, openGroups } from '../../src/run/cgroup.ts'
import { pathOf } from '../../src/run/delegation.ts'
import { findRestraint, nameLimit } from '../../src/run/limits.ts'
import { findUser } from '../../src/run/user.ts'
import { leaveOut } from '../support/installation.ts'
import { findSleepers, openGround, PATH, runScript, kill as shoot, until } from './ground.ts'
import { end, isAlive, type Keeper, type KeeperOptions, startKeeper } from './keeper.ts'
import { byShell, openWarm } from './warm.ts'

const MiB = 2 ** 20
/** No mark, no session, no parent, no directory and no stream of its run is left to it. */
const DAEMON = `cd /; env -i NAP=$NAP setsid sh -c 'setsid sleep $NAP </dev/null >/dev/null 2>&1 &' </dev/null >/dev/null 2>&1`

/** A group as a service manager would make it for a worker, gone afterwards. */
function delegate(context: TestContext, suffix = ''): string {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
  const root = pathOf('/', mounts) ?? leaveOut(context, 'no cgroup2 file system is mounted')
  const path = join(root, `qworker-test-${process.pid}-${process.hrtime.bigint()}${suffix}`)
  try {
    mkdirSync(path)
  } catch (error) {
    leaveOut(context, `no control group can be made: ${(error as Error).message}`)
  }
  onTestFinished(() => until(`the end of ${path}`, () => tryRemove(path)))
  return path
}

function tryRemove(path: string): boolean {
  try {
    for (const name of foldersIn(path)) tryRemove(join(path, name))
    rmdirSync(path)
    return true
  } catch {
    return false
  }
}

function foldersIn(path: string): string[] {
  return readdirSync(path, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name)
}

/** Starts a worker in a group, and waits for the end of its runs. */
async function runWithin(within: string | undefined, runs: NonNullable<KeeperOptions['runs']>, ground = openGround()) {
  const keeper = await startKeeper(ground, { guarded: false, nasty: false, runs, ...(within && { within }) })
  onTestFinished(() => void keeper.child.kill('SIGKILL'))
  await until('the end of all runs', () => Object.keys(keeper.reports).length === runs.length)
  return { keeper, ground }
}

async function stop({ child }: Keeper): Promise<void> {
  const exited = child.exitCode === null ? once(child, 'exit') : undefined
  child.stdin?.end()
  await exited
}

test('the worker goes to a leaf of its group, and each run to one of its own; all is undone afterwards', async (context) => {
  const within = delegate(context)
  const script = 'sed -n s/^0:://p /proc/self/cgroup; echo $$; echo 2>/dev/null >&3 || echo closed'
  const { keeper, ground } = await runWithin(within, [{ script, manifest: { output: 'text' } }])
  expect(keeper.cgroup?.path).toBe(within)
  expect(readFileSync(`/proc/${keeper.child.pid}/cgroup`, 'utf8')).toMatch(/^0::.*\/worker$/m)
  const [report] = keeper.reports
  const [group = '', pid, entry] = JSON.parse(report?.resultJson ?? '""').split('\n')
  expect(group.split('/').at(-1)).toMatch(new RegExp(`^w\\d+-[-\\w]+\\.${ground.uuid}\\.1\\.`))
  expect(Number(pid)).toBe(report?.pid)
  expect(entry).toBe('closed')
  expect(foldersIn(within)).toEqual(['worker'])
  await stop(keeper)
  expect(foldersIn(within)).toEqual([])
  expect(keeper.problems).toEqual([])
})

test('the kernel counts the processor time, also of a run that no sample saw', async (context) => {
  const spin = 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'
  const { keeper } = await runWithin(delegate(context), [{ script: 'exit 0' }, { script: `(${spin}) & ${spin}; wait` }])
  const [short, long] = keeper.reports.map(({ usage }) => usage)
  expect(short?.method).toMatch(/^cgroup/)
  expect(short?.cpu_seconds).toBeLessThan(0.5)
  expect(long?.cpu_seconds).toBeGreaterThan(2 * (short?.cpu_seconds ?? 0))
  await stop(keeper)
})

test('a daemon without any trace outlives a run that has no group: the need', async () => {
  const { keeper, ground } = await runWithin(undefined, [{ script: `${DAEMON}; sleep 0.5; exit 0` }])
  expect(keeper.reports[0]?.outcome.kind).toBe('success')
  expect(findSleepers(ground)).toHaveLength(1)
  for (const pid of findSleepers(ground)) shoot(pid)
  await until('its end', () => findSleepers(ground).length === 0)
  await stop(keeper)
})

test('in its group it is found and ended, after the run and at its limit', async (context) => {
  const { keeper, ground } = await runWithin(delegate(context), [
    { script: `${DAEMON}; sleep 0.5; exit 0` },
    { script: `${DAEMON}; trap "" TERM; while :; do sleep 0.1; done`, limitSeconds: 1.5 },
  ])
  expect(findSleepers(ground)).toEqual([])
  const [ended, limited] = keeper.reports
  expect(ended).toMatchObject({ outcome: { kind: 'success' }, kill: { survivors: [] } })
  expect(ended?.kill?.signals).toMatchObject([{ signal: 'SIGKILL', processes: 1 }])
  expect(limited).toMatchObject({ outcome: { kind: 'timed_out' }, kill: { survivors: [] } })
  expect(limited?.kill?.signals.map(({ signal }) => signal)).toEqual(['SIGTERM', 'SIGKILL'])
  await stop(keeper)
})

test('a run of another user enters its group, and cannot leave it', async (context) => {
  const user = process.geteuid?.() === 0 ? await findUser('nobody') : undefined
  if (user === undefined || 'problem' in user) leaveOut(context, 'needs root and the user nobody')
  const within = delegate(context)
  const script = `sed -n s/^0:://p /proc/self/cgroup; echo 0 2>/dev/null >'${within}/worker/cgroup.procs' && echo left; id -un`
  const ground = openGround()
  spawnSync('chmod', ['o+x', ground.dir])
  const { keeper } = await runWithin(within, [{ script, manifest: { user, output: 'text' } }], ground)
  const [group, ...rest] = JSON.parse(keeper.reports[0]?.resultJson ?? '""').split('\n')
  expect(group).toContain(ground.uuid)
  expect(rest).toEqual(['nobody', ''])
  await stop(keeper)
})

test('a worker killed with -9: its guard ends what no look could find, and removes the groups', async (context) => {
  const within = delegate(context)
  const ground = openGround()
  const runs = [{ script: `${DAEMON}; sleep $NAP` }, { script: `${DAEMON}; exec sleep $NAP` }]
  const keeper = await startKeeper(ground, { guarded: true, nasty: false, runs, within, sleepers: 4 })
  const guard = keeper.guard() as number
  await end(keeper.child, 'SIGKILL')
  await until('the end of all runs', () => findSleepers(ground).length === 0)
  await until('the end of the guard', () => !isAlive(guard))
  expect(foldersIn(within)).toEqual(['worker'])
  const { receipt } = JSON.parse(readFileSync(join(keeper.path, 'ended.json'), 'utf8'))
  expect(receipt).toMatchObject({ survivors: [] })
})

test('a worker that shares its group with others leaves all as it is', async (context) => {
  const within = delegate(context)
  const stranger: ChildProcess = spawn('/bin/sh', ['-c', 'echo 0 >"$1/cgroup.procs"; echo; read x', 'sh', within])
  onTestFinished(() => void stranger.kill())
  await once(stranger.stdout as NodeJS.ReadableStream, 'data')
  const { keeper } = await runWithin(within, [{ script: 'exit 0' }])
  expect(keeper.cgroup?.why).toContain(`process ${stranger.pid} is in it too`)
  expect(foldersIn(within)).toEqual([])
  expect(readFileSync(join(within, 'cgroup.procs'), 'utf8').split('\n').sort()).toEqual(
    ['', String(stranger.pid), String(keeper.child.pid)].sort(),
  )
  expect(keeper.reports[0]?.outcome.kind).toBe('success')
  await stop(keeper)
})

test('root has the right to every group: of one that systemd may have made, systemd is asked', async (context) => {
  if (process.geteuid?.() !== 0) leaveOut(context, 'needs root')
  const within = delegate(context, '.service')
  const { keeper } = await runWithin(within, [])
  expect(keeper.cgroup?.why).toMatch(/^qworker-test-.*\.service is not delegated \(Delegate= is ./)
  expect(foldersIn(within)).toEqual([])
  await stop(keeper)
})

test('memory and processes are limits of the whole run', async (context) => {
  const limits = { memoryBytes: 128 * MiB, processes: 10 }
  const restraint = { launcher: [], inGroup: limits }
  const within = delegate(context)
  const offered = readFileSync(join(within, 'cgroup.controllers'), 'utf8').trim().split(' ')
  if (!['memory', 'pids'].every((name) => offered.includes(name)))
    leaveOut(context, 'memory and pids are not offered by cgroup v2 here')
  const eat = `exec '${process.execPath}' -e 'const all = []; for (;;) all.push(Buffer.alloc(2 ** 20, 1))'`
  const { keeper } = await runWithin(within, [
    { script: `${eat} & wait $!`, manifest: { limits, restraint } },
    { script: 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait', manifest: { limits, restraint } },
  ])
  expect(keeper.reports.map(({ outcome }) => outcome)).toMatchObject([
    { kind: 'limit_exceeded', detail: expect.stringMatching(/^it used more than 128 MiB of memory/) },
    { kind: 'limit_exceeded', detail: expect.stringMatching(/^it asked for more than 10 processes/) },
  ])
  expect(keeper.reports[0]?.usage).toMatchObject({ method: 'cgroup', peak_memory_bytes: 128 * MiB })
  await stop(keeper)
})

test('a group that cannot be made is told once, and the run goes on with the limits that there are', async () => {
  const problems: string[] = []
  const groups = openGroups('/nowhere', (problem) => problems.push(problem))
  const restraint = { launcher: [], inGroup: { processes: 5 }, standIn: ['/usr/bin/env', 'STAND_IN=1'] }
  for (let i = 0; i < 2; i++) {
    const report = await runScript(openGround(), 'echo $STAND_IN', { groups, manifest: { restraint } })
    expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: '1\n', usage: { method: 'sampled' } })
  }
  expect(problems).toEqual([expect.stringMatching(/told once.*ENOENT/)])
})

test('who cannot enter is started with the words for that, and the descriptor is closed', () => {
  const command = [
    '/bin/sh',
    '-c',
    `echo "$0 $IN $1"; echo 2>/dev/null >&${ENTRY_FD} || echo closed; tr '\\0' '\\n' </proc/$$/environ`,
    'a b',
    '$(id)',
  ]
  const say = (device: string) => {
    const entry = openSync(device, 'w')
    const [file = '', ...args] = [...entryLauncher(['/usr/bin/env', 'IN=out']), ...command]
    const stdio: StdioOptions = ['ignore', 'pipe', 'pipe', entry]
    const { stdout } = spawnSync(file, args, { stdio, encoding: 'utf8', env: { PATH, A: '1' } })
    closeSync(entry)
    return stdout.replace(`PATH=${PATH}\n`, '').replace(/^(_|SHLVL)=.*\n/gm, '')
  }
  expect(say('/dev/full')).toBe('a b out $(id)\nclosed\nA=1\nIN=out\n')
  expect(say('/dev/null')).toBe('a b  $(id)\nclosed\nA=1\n')
})

test('a program that cannot be started is told as without a group', async (context) => {
  const ground = openGround()
  writeFileSync(join(ground.dir, 'lost.sh'), '#!/no/interpreter\n', { mode: 0o755 })
  const { keeper } = await runWithin(delegate(context), [
    { script: '', manifest: { command: [join(ground.dir, 'lost.sh')] } },
    { script: 'exit 127' },
  ])
  expect(keeper.reports.map(({ outcome }) => outcome)).toMatchObject([
    { kind: 'not_started', detail: expect.stringMatching(/cannot be started: \/no\/interpreter, .* is not there$/) },
    { kind: 'failed', exitCode: 127 },
  ])
  await stop(keeper)
})

test('limits are divided: what groups keep is no resource limit, and root may have processes', async () => {
  const limits = { memoryBytes: 64 * MiB, processes: 5, openFiles: 64 }
  const found = await findRestraint(limits, PATH, undefined, ['memory', 'pids'])
  if ('problem' in found) throw new Error(found.problem)
  expect(found.inGroup).toEqual({ memoryBytes: 64 * MiB, processes: 5 })
  expect(found.launcher.join(' ')).toMatch(/--core=0 --nofile=64 --$/)
  if (process.geteuid?.() !== 0) return
  const [file = '', ...args] = [...(found.standIn ?? []), '/bin/true']
  const { status, stderr } = spawnSync(file, args, { encoding: 'utf8' })
  expect([status, stderr]).toEqual([75, expect.stringContaining('memory 64 MiB, processes 5')])
})

test('what the group noted names the limit', () => {
  const quiet: GroupNotes = {
    ...{ wasEntered: true, cpuSeconds: 1, peakMemoryBytes: 1, forksRefused: 0 },
    memoryKills: { count: 0, isOwnLimit: false },
  }
  const limits = { memoryBytes: 128 * MiB, processes: 5 }
  const killed = { kind: 'signalled', signal: 'SIGKILL' } as const
  const name = (notes: Partial<GroupNotes>) =>
    nameLimit(killed, limits, { peak_memory_bytes: 1 }, 0, { ...quiet, ...notes })
  const detail = 'it used more than 128 MiB of memory (memory, killed by the kernel, SIGKILL)'
  expect(name({ memoryKills: { count: 1, isOwnLimit: true } })).toEqual({ kind: 'limit_exceeded', detail })
  expect(name({ memoryKills: { count: 1, isOwnLimit: false } })).toMatchObject({
    kind: 'signalled',
    limits: expect.stringContaining('no memory left'),
  })
  expect(name({ forksRefused: 3 })).toMatchObject({
    kind: 'limit_exceeded',
    detail: expect.stringMatching(/5 processes .*refused 3 times/),
  })
  expect(nameLimit(killed, undefined, { peak_memory_bytes: 1 }, 0, quiet)).toEqual(killed)
})

test('the place of a group is found on unified, hybrid and narrowed mounts', () => {
  const line = (root: string, point: string) => `41 31 0:30 ${root} ${point} rw,relatime - cgroup2 cgroup2 rw`
  const v1 = '32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu'
  expect(pathOf('/a/b.service', `${v1}\n${line('/', '/sys/fs/cgroup')}`)).toBe('/sys/fs/cgroup/a/b.service')
  expect(pathOf('/a', `${v1}\n${line('/', '/sys/fs/cgroup/unified')}`)).toBe('/sys/fs/cgroup/unified/a')
  expect(pathOf('/pod/a', line('/pod', '/my\\040groups'))).toBe('/my groups/a')
  expect(pathOf('/podium', line('/pod', '/x'))).toBeUndefined()
  expect(pathOf('/../x', line('/', '/x'))).toBeUndefined()
  expect(pathOf('/a', v1)).toBeUndefined()
})

test('a warm process and what it leaves are in one group, which outlasts its jobs and is gone with it', async (context) => {
  const ground = openGround()
  const problems: string[] = []
  const groups = openGroups(delegate(context), (problem) => problems.push(problem))
  const slot = openWarm(ground, byShell(`${DAEMON}; answer "\\"$(sed -n s/^0:://p /proc/self/cgroup)\\""`))
  const [first, second] = [await slot.run({}, { groups }), await slot.run({}, { groups })]
  await until('two daemons', () => findSleepers(ground).length === 2)
  expect(first.resultJson).toContain(`/w1-${ground.uuid}.warm.test.`)
  expect(second.resultJson).toBe(first.resultJson)
  expect(foldersIn(groups.base)).toHaveLength(1)
  await slot.seats.close()
  expect(findSleepers(ground)).toEqual([])
  expect(foldersIn(groups.base)).toEqual([])
  expect(problems).toEqual([])
})
