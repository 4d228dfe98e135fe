import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findProcesses, killTree, sweepLeftovers } from '../../src/run/kill.ts'
import { lookFor, MARK_VARIABLE, makeKnown, startTicksOf } from '../../src/run/look.ts'
import { startSampling } from '../../src/run/usage.ts'
import {
  findLeftovers,
  findSleepers,
  listPids,
  openGround,
  PATH,
  PROJECT,
  readProc,
  startRun,
  until,
} from './ground.ts'

const SILENT = '>/dev/null 2>&1 </dev/null'
const GRANDCHILD = 'sh -c "sleep $NAP & wait" & wait'
const SETSID_CHILD = 'setsid sleep $NAP & wait'
/** Own session, no parent, other directory, other streams: only the mark tells. */
const DAEMON = `cd /; setsid sh -c "sleep $NAP ${SILENT} &"; exec sleep $NAP ${SILENT}`

function sentSignals(receipt: { signals: readonly { signal: string }[] } | undefined): string[] {
  return receipt?.signals.map(({ signal }) => signal) ?? []
}

test('killing the child alone leaves its grandchild alive: the need for more', async () => {
  const ground = openGround()
  const { child, run, exited } = await startRun(ground, GRANDCHILD, 1)
  child.kill('SIGKILL')
  await exited
  expect(findSleepers(ground)).toHaveLength(1)
  expect((await sweepLeftovers(run))?.survivors).toEqual([])
  expect(findLeftovers(ground)).toEqual([])
})

test.each([
  ['a child in its own session', SETSID_CHILD, 1],
  ['a daemon', DAEMON, 2],
])('killing the process group leaves %s alive: the need for the sweep', async (_, script, sleepers) => {
  const ground = openGround()
  const { run, exited } = await startRun(ground, script, sleepers)
  process.kill(-run.pid, 'SIGKILL')
  await exited
  expect(findSleepers(ground)).toHaveLength(1)
  expect(sentSignals(await sweepLeftovers(run))).toEqual(['SIGKILL'])
  expect(findLeftovers(ground)).toEqual([])
})

test.each([
  ['a grandchild', GRANDCHILD, 1],
  ['a child in its own session', SETSID_CHILD, 1],
  ['a daemon: own session, no parent', DAEMON, 2],
  ['a child without the mark, known by its session', `(cd /; exec env -i sleep $NAP ${SILENT}) & wait`, 1],
  ['a child without the mark, known by its parent', `(cd /; exec env -i setsid sleep $NAP ${SILENT}) & wait`, 1],
  [
    'an orphan without the mark, known by its directory',
    `env -i setsid sh -c "sleep $NAP ${SILENT} &"; exec sleep $NAP`,
    2,
  ],
  [
    'an orphan without the mark, known by the stream that it writes to',
    'cd /; env -i setsid sh -c "sleep $NAP &"; exec sleep $NAP',
    2,
  ],
])('ends %s', async (_, script, sleepers) => {
  const ground = openGround()
  const { run, exited } = await startRun(ground, script, sleepers)
  const receipt = await killTree(run)
  expect(findLeftovers(ground)).toEqual([])
  expect(receipt).toMatchObject({ method: 'proc', survivors: [] })
  expect(sentSignals(receipt)).toEqual(['SIGTERM'])
  expect(receipt.signals[0]?.processes).toBeGreaterThanOrEqual(sleepers)
  await exited
})

test('a stopped process is woken, so that SIGTERM reaches it', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'sleep $NAP & kill -STOP $$', 1)
  await until('a stopped process', () => /^State:\tT/m.test(readProc(run.pid, 'status')))
  const receipt = await killTree(run, { termToKillMs: 10_000 })
  expect(sentSignals(receipt)).toEqual(['SIGTERM'])
  expect(receipt.survivors).toEqual([])
})

test('who ignores SIGTERM gets SIGKILL after its time, not before', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'trap "" TERM; sleep $NAP', 1)
  const receipt = await killTree(run, { termToKillMs: 300 })
  expect(sentSignals(receipt)).toEqual(['SIGTERM', 'SIGKILL'])
  expect(receipt.signals[1]?.at_ms).toBeGreaterThanOrEqual(300)
  expect(receipt.duration_ms).toBeGreaterThanOrEqual(receipt.signals[1]?.at_ms as number)
  expect(receipt.survivors).toEqual([])
})

test('a process that was seen once is remembered when its parent, the only trace to it, is gone', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, `cd /; (trap "" TERM; exec env -i setsid sleep $NAP ${SILENT}) & wait`, 1)
  const receipt = await killTree(run, { termToKillMs: 300 })
  expect(findLeftovers(ground)).toEqual([])
  expect(sentSignals(receipt)).toEqual(['SIGTERM', 'SIGKILL'])
  expect(receipt.signals[1]?.processes).toBe(1)
})

test.each([
  ['in one group', 'sh'],
  ['each in a session of its own', 'setsid sh'],
])('ends processes that fork and exit all the time, %s', async (_, command) => {
  const ground = openGround()
  // Each process starts the next and exits: a list of processes is old before it is read.
  const hop = `trap "" TERM; [ -e "$STOP" ] || { echo; ${command} -c "$HOP" & }`
  const script = `HOP='${hop}'; export HOP; for i in 1 2 3; do sh -c "$HOP"; done; exec sleep $NAP`
  const { run } = await startRun(ground, script, 1)
  const hops = () => statSync(join(run.workdir, 'stdout.log')).size
  await until('many hops', () => hops() > 50)
  const receipt = await killTree(run, { termToKillMs: 100 })
  expect(receipt.survivors).toEqual([])
  const hopped = hops()
  expect(findLeftovers(ground)).toEqual([])
  expect(findLeftovers(ground)).toEqual([])
  expect(hops()).toBe(hopped)
})

/** Chains of fork, own session, fork; each parent exits. They end by themselves. */
const STORM = `use POSIX (); $SIG{TERM} = "IGNORE"; $SIG{CHLD} = "IGNORE"; my $end = time + 30; chdir "/";
for (1 .. 8) {
  next if fork;
  while (time < $end && !-e $ENV{STOP}) {
    my $first = fork; POSIX::_exit(0) if $first; next unless defined $first;
    POSIX::setsid(); POSIX::_exit(0) if fork;
  }
  POSIX::_exit(0);
}
sleep 30;`

test('a storm of forks, each in its own session and without a parent, is ended or named as a survivor', {
  timeout: 60_000,
}, async () => {
  const ground = openGround()
  const newest = () => Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[4])
  const before = newest()
  const { run } = await startRun(ground, `exec perl -e '${STORM}'`, 0)
  await until('the storm', () => newest() > before + 500 || newest() < before)
  const began = performance.now()
  const receipt = await killTree(run)
  console.log(`a storm of forks was ended within ${Math.round(performance.now() - began)} ms`)
  expect(sentSignals(receipt)).toEqual(['SIGTERM', 'SIGKILL'])
  // On a machine that gives us too little time it goes on, and the receipt says so.
  const isEnded = receipt.survivors.length === 0
  if (isEnded) expect(findLeftovers(ground)).toEqual([])
  else console.log('it was not ended in time, as its receipt says')
  writeFileSync(join(ground.dir, 'stop'), '')
  await until('the end of the storm', () => findLeftovers(ground).length === 0)
})

test('a look is over at its time, and says that it has not seen all', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'exec sleep $NAP', 1)
  const known = makeKnown(run)
  expect(await lookFor(run, known, { until: performance.now() })).toMatchObject({ isClear: false, isBlind: true })
  expect((await lookFor(run, known, { until: performance.now() + 60_000 })).found).toHaveLength(1)
  expect((await killTree(run)).survivors).toEqual([])
})

test('a process without any trace that was sampled while its parent lived is ended; without samples it is not', async () => {
  const ground = openGround()
  const orphan = `cd /; env -i setsid sleep $NAP ${SILENT} & until [ -e "$STOP" ]; do sleep 0.02; done`
  const { run, exited } = await startRun(ground, `(${orphan})`, 1)
  const sampler = startSampling(run.pid)
  sampler.sample()
  const seen = sampler.stop().processes
  writeFileSync(join(ground.dir, 'stop'), '')
  await exited
  expect(await sweepLeftovers(run)).toBeUndefined()
  expect(findSleepers(ground)).toHaveLength(1)
  const recycled = new Map([...seen].map(([pid, ticks]) => [pid, ticks - 1]))
  expect(await sweepLeftovers(run, { seen: recycled })).toBeUndefined()
  expect((await sweepLeftovers(run, { seen }))?.survivors).toEqual([])
  expect(findLeftovers(ground)).toEqual([])
})

test('a run that ended by itself and left nothing gets no receipt', async () => {
  const ground = openGround()
  const { run, exited } = await startRun(ground, 'exit 0', 0)
  await exited
  expect(await sweepLeftovers(run)).toBeUndefined()
})

test('a zombie is no survivor', async () => {
  const ground = openGround()
  // The sleep that replaces the shell does not know of the child that it inherits, and never waits for it.
  const { run } = await startRun(ground, 'sh -c "exit 0" & exec sleep $NAP', 1)
  const isZombie = (pid: number) => new RegExp(`^\\d+ \\(.*\\) Z ${run.pid} `).test(readProc(pid, 'stat'))
  await until('a zombie', () => listPids().some(isZombie))
  expect(await findProcesses(run)).toEqual([run.pid])
  expect((await killTree(run)).survivors).toEqual([])
})

test('a process of the same user that only resembles the run is never touched', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'exec sleep $NAP', 1)
  mkdirSync(`${run.workdir}-of-another`)
  const resembling = [
    spawn('sleep', ['121'], { env: { PATH, [MARK_VARIABLE]: `${run.mark}0` }, stdio: 'ignore' }),
    spawn('sleep', ['121'], { env: { PATH, NOTE: `${MARK_VARIABLE}=${run.mark} was seen` }, stdio: 'ignore' }),
    spawn('sleep', ['121'], { env: { PATH }, cwd: `${run.workdir}-of-another`, stdio: 'ignore' }),
    spawn('sleep', ['121'], { env: { PATH }, stdio: 'ignore', detached: true }),
  ]
  await Promise.all(resembling.map((process) => once(process, 'spawn')))
  try {
    expect(await findProcesses(run)).toEqual([run.pid])
    expect((await killTree(run)).survivors).toEqual([])
    expect(resembling.map(({ exitCode, signalCode }) => exitCode ?? signalCode)).toEqual([null, null, null, null])
    for (const { pid } of resembling) expect(startTicksOf(pid as number)).toBeDefined()
  } finally {
    for (const process of resembling) process.kill('SIGKILL')
    await Promise.all(resembling.map((process) => process.exitCode ?? process.signalCode ?? once(process, 'exit')))
  }
})

test('a process that is older than the run is not touched, whatever its traces', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'exec sleep $NAP', 1)
  const later = { ...run, pid: 2 ** 30, startTicks: (run.startTicks as number) + 1 }
  expect(await findProcesses(later)).toEqual([])
  expect((await killTree(run)).survivors).toEqual([])
})

test('a leader whose number was given to another process is not that process', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, 'exec sleep $NAP', 1)
  // What recycling looks like: the number is alive, and started at another time than the run did.
  const recycled = { ...run, mark: 'another', workdir: '/nowhere', startTicks: (run.startTicks as number) - 1 }
  expect(await findProcesses(recycled)).toEqual([])
  expect(await sweepLeftovers(recycled)).toBeUndefined()
  expect(await findProcesses(run)).toEqual([run.pid])
  expect((await killTree(run)).survivors).toEqual([])
})

test('without /proc, descendants and the group are ended, also in other sessions', async () => {
  const ground = openGround()
  const script = 'setsid sleep $NAP & trap "" TERM; sh -c "sleep $NAP & wait" & wait'
  const { run } = await startRun(ground, script, 2)
  const receipt = await killTree(run, { useProc: false, termToKillMs: 300 })
  expect(receipt).toMatchObject({ method: 'tree', survivors: [] })
  expect(sentSignals(receipt)).toEqual(['SIGTERM', 'SIGKILL'])
  await until('the end of all sleepers', () => findSleepers(ground).length === 0)
})

test('without /proc, what a run left in its group is ended', async () => {
  const ground = openGround()
  const { run, exited } = await startRun(ground, `sleep $NAP ${SILENT} &`, 1)
  await exited
  expect(await sweepLeftovers(run, { useProc: false })).toMatchObject({ method: 'tree', survivors: [] })
})

test('where ps is missing, tree-kill ends the process that called it: the need for one that can be spared', () => {
  const program = "require('tree-kill')(process.pid, 'SIGCONT', () => console.log('told'))"
  const { status, stderr } = spawnSync(process.execPath, ['-e', program], {
    cwd: PROJECT,
    env: { PATH: '/nowhere' },
    encoding: 'utf8',
  })
  expect(status).toBe(1)
  expect(stderr).toMatch(/Unhandled 'error' event[\s\S]*spawn (ps|pgrep) ENOENT/)
})

test('where ps is missing, the group is ended all the same, and nothing is thrown', async () => {
  const ground = openGround()
  const { run } = await startRun(ground, GRANDCHILD, 1)
  await withPath('/nowhere', async () => {
    expect(await killTree(run, { useProc: false })).toMatchObject({ method: 'tree', survivors: [] })
  })
})

async function withPath(path: string, action: () => Promise<void>): Promise<void> {
  process.env.PATH = path
  try {
    await action()
  } finally {
    process.env.PATH = PATH
  }
}
