import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, expect } from 'vitest'
import type { Algorithm } from '../../src/run/algorithm.ts'
import type { RunIdentity } from '../../src/run/kill.ts'
import { type Launcher, openLauncher } from '../../src/run/launcher.ts'
import { MARK_VARIABLE, startTicksOf } from '../../src/run/look.ts'
import { type RunReport, type RunRequest, runAlgorithm } from '../../src/run/run.ts'
import { createWorkdir, type Workdir } from '../../src/run/workdir.ts'

export const PROJECT = fileURLToPath(new URL('../..', import.meta.url))
export const PATH = process.env.PATH as string

/** A ground is one directory and one uuid; by both, and by the number that its helpers sleep, its processes are found. */
export interface Ground {
  readonly dir: string
  readonly uuid: string
  /** seconds for `sleep`: no other test's helpers sleep as long */
  readonly nap: string
}

const open: Ground[] = []
let runs = 0

export function openGround(): Ground {
  const uuid = randomBytes(16).toString('hex')
  const nap = `120.${parseInt(uuid.slice(0, 10), 16)}1`
  const ground = { dir: mkdtempSync(join(tmpdir(), 'run-')), uuid, nap }
  open.push(ground)
  return ground
}

afterEach(async () => {
  const left = open.flatMap(findLeftovers)
  for (const ground of open) {
    await writeFile(join(ground.dir, 'stop'), '')
    await until('the end of what a test left', () => {
      for (const pid of findLeftovers(ground)) kill(pid)
      return findLeftovers(ground).length === 0
    })
    rmSync(ground.dir, { recursive: true, force: true })
  }
  open.length = 0
  expect(left, 'processes left by a test').toEqual([])
})

/** Looks by other means than those of kill.ts where it can, and at all processes, old or young. Zombies do not count. */
export function findLeftovers({ dir, uuid, nap }: Ground): number[] {
  return listPids().filter(
    (pid) =>
      readProc(pid, 'environ').includes(uuid) ||
      readProc(pid, 'cmdline').includes(nap) ||
      ['cwd', 'fd/0', 'fd/1', 'fd/2'].some((link) => linkOf(pid, link).startsWith(dir)),
  )
}

export function findSleepers({ nap }: Ground): number[] {
  return listPids().filter((pid) => readProc(pid, 'cmdline') === `sleep\0${nap}\0`)
}

export function listPids(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map(Number)
}

export function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1')
  } catch {
    return ''
  }
}

function linkOf(pid: number, link: string): string {
  try {
    return readlinkSync(`/proc/${pid}/${link}`)
  } catch {
    return ''
  }
}

export function kill(pid: number, signal: NodeJS.Signals = 'SIGKILL'): void {
  try {
    process.kill(pid, signal)
  } catch {
    // Gone between the look and the shot.
  }
}

export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`waited in vain for: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** Starts a shell script as the first process of a run, without run.ts. `$NAP` is the number to sleep. */
export async function startRun(ground: Ground, script: string, sleepers: number) {
  const workdir = join(ground.dir, 'work')
  mkdirSync(join(workdir, 'scratch'), { recursive: true })
  const stdout = openSync(join(workdir, 'stdout.log'), 'a')
  const mark = `${ground.uuid}.1.${randomBytes(8).toString('hex')}`
  const child = spawn('/bin/sh', ['-c', script], {
    cwd: join(workdir, 'scratch'),
    env: { PATH, NAP: ground.nap, STOP: join(ground.dir, 'stop'), [MARK_VARIABLE]: mark },
    stdio: ['ignore', stdout, stdout],
    detached: true,
  })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  closeSync(stdout)
  const pid = child.pid as number
  const run: RunIdentity = { pid, mark, workdir, startTicks: startTicksOf(pid) }
  await until(`${sleepers} sleepers`, () => findSleepers(ground).length === sleepers)
  return { child, run, exited }
}

export interface RunOptions extends Partial<Omit<RunRequest, 'algorithm' | 'workdir' | 'uuid'>> {
  readonly manifest?: Partial<Algorithm>
  readonly payloadJson?: string
  readonly settings?: Record<string, unknown>
}

export function makeAlgorithm(dir: string, manifest: Partial<Algorithm>): Algorithm {
  return {
    name: 'test',
    version: '1',
    description: '',
    dir,
    command: ['/bin/true'],
    outputs: undefined,
    output: 'auto',
    maxAttempts: undefined,
    permanentExits: [],
    env: {},
    settings: [],
    ...manifest,
  }
}

const launchers: Launcher[] = []

export function closeLaunchers(): void {
  for (const launcher of launchers.splice(0)) launcher.close()
}

afterEach(closeLaunchers)

/** Closed after the test. */
function makeLauncher(): Launcher {
  const launcher = openLauncher('w1-test')
  launchers.push(launcher)
  return launcher
}

export const FIRST_ATTEMPT = {
  ...{ attempt: 1, maxAttempts: 5, tube: 'default', priority: 1337 },
  ...{ ttrSeconds: 60, limitSeconds: 60 },
}

export async function makeRequest(ground: Ground, options: RunOptions = {}): Promise<RunRequest> {
  const { manifest = {}, payloadJson = '{}', settings, ...rest } = options
  const workBase = join(ground.dir, 'work')
  return {
    algorithm: makeAlgorithm(ground.dir, manifest),
    workdir: await createWorkdir(workBase, `${ground.uuid}.${++runs}`, payloadJson, settings),
    workerId: 'w1-test',
    uuid: ground.uuid,
    type: 'test',
    ...FIRST_ATTEMPT,
    environment: { PATH, LANG: 'C.UTF-8', NAP: ground.nap },
    maxOutputBytes: 10_000_000,
    maxScratchBytes: 100_000_000,
    launcher: makeLauncher(),
    signal: new AbortController().signal,
    ...rest,
  }
}

/** Runs a shell script (`$NAP` is the number to sleep) to its end. */
export async function runScript(
  ground: Ground,
  script: string,
  options: RunOptions = {},
): Promise<RunReport & { workdir: Workdir }> {
  const manifest = { command: ['/bin/sh', '-c', script], ...options.manifest }
  const request = await makeRequest(ground, { ...options, manifest })
  return { ...(await runAlgorithm(request)), workdir: request.workdir }
}

export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}
