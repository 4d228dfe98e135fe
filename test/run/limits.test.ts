import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findAlgorithms } from '../../src/run/algorithm.ts'
import { findLauncher, findRestraint, type Launcher, type Limits, nameLimit } from '../../src/run/limits.ts'
import { findUser } from '../../src/run/user.ts'
import { leaveOut } from '../support/installation.ts'
import { openGround, PATH, type RunOptions, runScript } from './ground.ts'

const isRoot = process.geteuid?.() === 0
const MiB = 2 ** 20
const EAT = 'const all = []; for (;;) all.push(Buffer.alloc(2 ** 20, 1))'
const NODE = `'${process.execPath}' -e`
const SPIN = 'while :; do :; done'

async function launcherFor(limits: Limits, path = PATH): Promise<Launcher> {
  const found = await findLauncher(limits, path, undefined)
  if ('problem' in found) throw new Error(found.problem)
  return found
}

async function runLimited(script: string, limits: Limits, { manifest, ...rest }: RunOptions = {}, path = PATH) {
  const launcher = await launcherFor(limits, path)
  return runScript(openGround(), script, { ...rest, manifest: { ...manifest, limits, restraint: { launcher } } })
}

/** A PATH in which there is a shell and no prlimit. */
function pathWith(shell: string): string {
  const { dir } = openGround()
  chmodSync(dir, 0o755)
  const bin = join(dir, 'bin')
  mkdirSync(bin)
  symlinkSync(shell, join(bin, 'sh'))
  return bin
}

test('prlimit is used where it is, and becomes the program: the process id stays', async () => {
  expect((await launcherFor({ openFiles: 64 }))[0]).toMatch(/\/prlimit$/)
  const report = await runLimited('echo $$', { openFiles: 64 })
  expect(report).toMatchObject({ outcome: { kind: 'success' }, resultJson: `${report.pid}\n` })
})

const shells = ['/bin/dash', '/bin/bash'].filter((shell) => existsSync(shell))
const ALL: Limits = { memoryBytes: 64 * MiB, cpuSeconds: 7, fileSizeBytes: 5000, openFiles: 32 }

test('each limit is set, soft and hard, and there are no core files', async () => {
  const { resultJson } = await runLimited('cat /proc/self/limits', ALL, { manifest: { output: 'text' } })
  expect(resultJson).toMatch(/Max cpu time +7 +8 .*Max file size +5000 +5000 .*Max data size +67108864 +67108864 /)
  expect(resultJson).toMatch(/Max core file size +0 +0 .*Max open files +32 +32 /)
})

test.each(shells)('without prlimit, %s as sh sets the same limits', async (shell) => {
  const { resultJson, pid } = await runLimited(
    'echo $$; cat /proc/self/limits',
    ALL,
    { manifest: { output: 'text' } },
    pathWith(shell),
  )
  // Blocks of 512 bytes: rounded up.
  expect(resultJson).toMatch(/Max cpu time +7 +8 .*Max file size +5120 +5120 .*Max data size +67108864 +67108864 /)
  expect(resultJson).toMatch(/Max core file size +0 +0 .*Max open files +32 +32 /)
  expect(JSON.parse(resultJson as string)).toMatch(new RegExp(`^${pid}\n`))
})

test('arguments with blanks, quotes and dollars arrive as they are', async () => {
  for (const path of [PATH, pathWith('/bin/sh')]) {
    const limits = { openFiles: 64 }
    const command = ['/usr/bin/printf', '[%s]', 'a b', '$(id)', '"\'', '--', '']
    const report = await runLimited('', limits, { manifest: { command, output: 'text' } }, path)
    expect(report.resultJson).toBe(JSON.stringify('[a b][$(id)]["\'][--][]'))
  }
})

test('memory: who asks for more than it may is refused, and the limits in force are told', async () => {
  const free = await runScript(openGround(), `${NODE} 'Buffer.alloc(200 * 2 ** 20, 1)'`)
  expect(free.outcome.kind).toBe('success')
  const report = await runLimited(`exec ${NODE} '${EAT}'`, { memoryBytes: 128 * MiB })
  expect(['failed', 'signalled']).toContain(report.outcome.kind)
  expect('limits' in report.outcome && report.outcome.limits).toMatch(/^limits: memory 128 MiB/)
  expect(report.usage?.peak_memory_bytes ?? 0).toBeLessThan(256 * MiB)
})

test('cpu_seconds: SIGXCPU names the limit; wall time does not count', async () => {
  const report = await runLimited(SPIN, { cpuSeconds: 1 })
  const detail = 'it used more than 1 s of processor time (cpu_seconds, SIGXCPU)'
  expect(report).toMatchObject({ outcome: { kind: 'limit_exceeded', detail }, signal: 'SIGXCPU' })
  expect((await runLimited('sleep 1.5; echo 1', { cpuSeconds: 1 })).outcome.kind).toBe('success')
})

test('cpu_seconds: who is deaf to SIGXCPU is killed a second later, and the limit is named', async () => {
  const report = await runLimited(`trap "" XCPU; ${SPIN}`, { cpuSeconds: 1 })
  const detail = 'it used more than 1 s of processor time (cpu_seconds, SIGKILL after SIGXCPU)'
  expect(report).toMatchObject({ outcome: { kind: 'limit_exceeded', detail }, signal: 'SIGKILL' })
})

test('cpu_seconds: a child that met it is told by the exit code of its shell', async () => {
  const report = await runLimited(`sh -c '${SPIN}'; exit $?`, { cpuSeconds: 1 })
  expect(report).toMatchObject({ outcome: { kind: 'limit_exceeded' }, exitCode: 152 })
})

test('file_size: SIGXFSZ names the limit, also for stdout', async () => {
  const detail = 'it wrote a file longer than 64 KiB (file_size, SIGXFSZ)'
  for (const target of ['big', '/dev/stdout']) {
    const report = await runLimited(`exec head -c 100000 /dev/zero >${target}`, { fileSizeBytes: 65_536 })
    expect(report.outcome).toEqual({ kind: 'limit_exceeded', detail })
  }
})

test('open_files: the one too many is refused', async () => {
  const open = 'const fds = []; for (;;) fds.push(require("fs").openSync("/dev/null"))'
  const report = await runLimited(`exec ${NODE} '${open}'`, { openFiles: 64 })
  expect(report).toMatchObject({ outcome: { kind: 'failed', exitCode: 1, limits: 'limits: open_files 64' } })
  expect(report.stderrTail).toContain('EMFILE')
})

test('processes are refused for root, whom the kernel does not count', async (context) => {
  if (!isRoot) leaveOut(context, 'the worker is not root')
  const found = await findLauncher({ processes: 5 }, PATH, undefined)
  expect(found).toEqual({ problem: expect.stringMatching(/processes cannot be enforced.* root; give it a user:/) })
})

test('processes: the fork too many is refused', async (context) => {
  const user = isRoot ? await findUser('nobody') : undefined
  if (user === undefined || 'problem' in user) leaveOut(context, 'needs root and the user nobody')
  for (const path of [PATH, ...shells.map(pathWith)]) {
    const limits = { processes: 1 }
    const launcher = await findLauncher(limits, path, user)
    if ('problem' in launcher) throw new Error(launcher.problem)
    const [file = '', ...args] = [...launcher, '/bin/sh', '-c', '/bin/true & wait']
    const { stderr, status } = spawnSync(file, args, {
      uid: user.uid,
      gid: user.gid,
      cwd: '/',
      timeout: 20_000,
      encoding: 'utf8',
    })
    expect(stderr).toMatch(/fork/i)
    expect(status).not.toBe(0)
  }
})

test('a limit that this machine cannot set makes the algorithm broken, with the words of who refused', async () => {
  const { dir } = openGround()
  mkdirSync(join(dir, 'x'))
  writeFileSync(join(dir, 'x', 'algorithm.yaml'), 'command: [/bin/sh]\nlimits: {open_files: 1000000, memory: 1GiB}\n')
  const find = (path: string) => findAlgorithms({ dirs: [dir], path, shareable: [] })
  expect((await find('/nowhere')).broken.get('x')).toMatch(
    /x\/algorithm\.yaml: limits: memory 1 GiB, open_files 1000000 cannot be set .*neither prlimit nor sh.*: install prlimit/,
  )
  const refusing = join(dir, 'bin')
  mkdirSync(refusing)
  writeFileSync(join(refusing, 'prlimit'), '#!/bin/sh\necho "prlimit: failed to set" >&2; exit 1\n', { mode: 0o755 })
  expect((await find(refusing)).broken.get('x')).toMatch(/\(prlimit: failed to set\)/)
})

test('a peak near the memory limit is told', () => {
  const name = (peak: number | null) =>
    nameLimit({ kind: 'failed', exitCode: 1 }, { memoryBytes: 512 * MiB }, { peak_memory_bytes: peak }, null)
  expect(name(498 * MiB)).toMatchObject({ limits: 'limits: memory 512 MiB, peak 498 MiB' })
  expect(name(400 * MiB)).toMatchObject({ limits: 'limits: memory 512 MiB' })
  expect(name(null)).toMatchObject({ limits: 'limits: memory 512 MiB' })
})

test('who has no limits has no launcher, and a SIGXCPU from elsewhere names none', async () => {
  const report = await runScript(openGround(), 'kill -XCPU $$')
  expect(report.outcome).toEqual({ kind: 'signalled', signal: 'SIGXCPU' })
})

test('open_files: as few as a manifest can say are enough for a program that opens none', async () => {
  for (const openFiles of [8, 13, 15, 16, 30]) {
    const restraint = await findRestraint({ openFiles }, PATH, undefined, [])
    if ('problem' in restraint) throw new Error(restraint.problem)
    const manifest = { command: ['/bin/cat', '/proc/self/limits'], limits: { openFiles }, restraint }
    const report = await runScript(openGround(), '', { manifest })
    expect(report, `${openFiles}`).toMatchObject({ outcome: { kind: 'success' } })
    expect(report.resultJson).toMatch(new RegExp(`Max open files +${openFiles} +${openFiles} `))
  }
})
