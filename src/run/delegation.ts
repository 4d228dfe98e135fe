/**
 * Whether this worker has a control group of its own, and its division (cgroup v2, Linux). It is used without asking when
 * all of this holds; else all is as without:
 *
 * - the group is not the root, and a usual one (`cgroup.type` is `domain`);
 * - no process is in it but the worker and what the worker started, and none in a group below it, but for runs that a
 *   dead worker left: who shares its group, as in the session of a shell, moves nobody and changes nothing;
 * - it belongs to the worker's user, who may write to it; and where systemd made it (`.service`, `.scope`) for a worker
 *   that is root or a service of a user, whom all belongs, systemd says that it is delegated (Delegate=);
 * - a first process could enter a group below it, and be removed from it.
 *
 * Then the worker goes to the leaf `worker`, since only leaves may hold processes once controllers are passed on, and
 * passes on memory, pids and cpu as far as they are offered. What is left out is told with its reason.
 */

import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  accessSync,
  closeSync,
  mkdirSync,
  constants as modes,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  ENTRY_FD,
  entryLauncher,
  isPopulated,
  killGroups,
  makeGroup,
  readMembers,
  removeGroups,
  tryWrite,
} from './cgroup.ts'
import { readProcess } from './look.ts'

/** The division of a worker's own group. */
export interface Delegation {
  /** absolute path of the group; those of the runs are made right below it */
  readonly path: string
  /** those of CONTROLLERS that hold for each run */
  readonly controllers: readonly string[]
  /** Ends and removes the groups of runs that dead workers left here. */
  sweep(): Promise<void>
  /** Undoes the division, as far as it can be: the worker goes back, and its leaf is removed. */
  giveBack(): void
}

const CONTROLLERS = ['memory', 'pids', 'cpu']
const LEAF = 'worker'
/** Marks begin with the id of a worker. */
const RUN_GROUP = /^w\d+-[0-9a-z]+(?:-[0-9a-f]{16})?-[0-9a-f]{8}\./
/** A guard that still ends the runs of the worker before us is in the leaf. */
const LEAF_PATIENCE_MS = 3000
const TRIAL_MS = 10_000

/** Finds and divides the worker's own group. Before the worker starts what lasts. Never throws: what hinders is the answer. */
export async function divideOwnGroup(): Promise<Delegation | { why: string }> {
  try {
    const path = await findOwnGroup()
    return typeof path === 'string' ? await divide(path) : path
  } catch (error) {
    return { why: (error as Error).message }
  }
}

/** The controllers that runs would have in groups of their own; changes nothing. Never throws. */
export async function describeOwnGroup(): Promise<{ controllers: readonly string[] } | { why: string }> {
  try {
    const path = await findOwnGroup()
    if (typeof path !== 'string') return path
    const offered = readFileSync(join(path, 'cgroup.controllers'), 'latin1').trim().split(' ')
    return { controllers: CONTROLLERS.filter((name) => offered.includes(name)) }
  } catch (error) {
    return { why: (error as Error).message }
  }
}

async function findOwnGroup(): Promise<string | { why: string }> {
  if (process.platform !== 'linux') return { why: `there are none on ${process.platform}` }
  const name = /^0::(\/.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1]
  const path = name === undefined ? undefined : pathOf(name, readFileSync('/proc/self/mountinfo', 'utf8'))
  if (name === undefined || path === undefined) return { why: 'no cgroup2 file system that shows its group is mounted' }
  const kind = readKind(path)
  if (kind === undefined) return { why: `${name} is the root group` }
  if (kind !== 'domain') return { why: `${name} is a group of the kind: ${kind}` }
  if (statSync(path).uid !== process.geteuid?.()) return { why: `${name} belongs to another user` }
  for (const file of ['', 'cgroup.procs', 'cgroup.subtree_control']) accessSync(join(path, file), modes.W_OK)
  return crowdIn(path, name) ?? (await unitProblem(name)) ?? path
}

/**
 * Where a group is in the file system.
 * @param name as in /proc/self/cgroup
 * @param mountinfo text of /proc/self/mountinfo: proc_pid_mountinfo(5)
 */
export function pathOf(name: string, mountinfo: string): string | undefined {
  if (name.split('/').includes('..')) return undefined
  for (const line of mountinfo.split('\n')) {
    const [fields = '', source = ''] = line.split(' - ', 2)
    if (!source.startsWith('cgroup2 ')) continue
    const [root = '', point = ''] = fields.split(' ').slice(3, 5).map(unescapeMount)
    if (root === '/') return join(point, name)
    if (name === root || name.startsWith(`${root}/`)) return join(point, name.slice(root.length))
  }
  return undefined
}

function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

/** The root has none. */
function readKind(path: string): string | undefined {
  try {
    return readFileSync(join(path, 'cgroup.type'), 'latin1').trim()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function crowdIn(path: string, name: string): { why: string } | undefined {
  const stranger = readMembers(path).find((pid) => !isOurs(pid))
  if (stranger !== undefined) return { why: `${name} is not its own: process ${stranger} is in it too` }
  const folder = groupsBelow(path).find(
    (each) => each !== LEAF && !RUN_GROUP.test(each) && isPopulated(join(path, each)),
  )
  return folder === undefined ? undefined : { why: `${name} is not its own: processes are in ${folder} below it` }
}

/** Those whose names begin with a dot are systemd's, for the moment of a reload. */
function groupsBelow(path: string): string[] {
  return readdirSync(path, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith('.'))
    .map(({ name }) => name)
}

/** This process, or one that it started. */
function isOurs(pid: number): boolean {
  for (let at: number | undefined = pid, steps = 0; at !== undefined && at > 1 && steps < 1000; steps++) {
    if (at === process.pid) return true
    at = readProcess(at)?.parent
  }
  return pid === process.pid
}

/** systemd hands over the folder of a delegated unit to the unit's user: only where it would be the same without, it is asked. */
async function unitProblem(name: string): Promise<{ why: string } | undefined> {
  const unit = basename(name)
  if (!/\.(service|scope|slice)$/.test(unit)) return undefined
  const isUsers = /\/user@\d+\.service\//.test(name)
  if (process.geteuid?.() !== 0 && !isUsers) return undefined
  const args = [...(isUsers ? ['--user'] : []), 'show', '--property=Delegate', '--value', '--', unit]
  const answer = await promisify(execFile)('systemctl', args, { timeout: TRIAL_MS }).then(
    ({ stdout }) => stdout.trim(),
    (error: Error) => error.message.split('\n', 1)[0],
  )
  return answer === 'yes' ? undefined : { why: `${unit} is not delegated (Delegate= is ${answer || 'not known'})` }
}

async function divide(path: string): Promise<Delegation | { why: string }> {
  const leaf = join(path, LEAF)
  const giveBack = () => {
    for (const name of CONTROLLERS) tryWrite(join(path, 'cgroup.subtree_control'), `-${name}`)
    tryWrite(join(path, 'cgroup.procs'), String(process.pid))
    try {
      rmdirSync(leaf)
    } catch {
      // What we started is still in it.
    }
  }
  const problem = await enterLeaf(path, leaf)
  if (problem !== undefined) {
    giveBack()
    return { why: problem }
  }
  const offered = readFileSync(join(path, 'cgroup.controllers'), 'latin1').trim().split(' ')
  const controllers = CONTROLLERS.filter(
    (name) => offered.includes(name) && tryWrite(join(path, 'cgroup.subtree_control'), `+${name}`) === undefined,
  )
  const trial = await tryGroup(path).catch((error: Error) => error.message)
  if (trial !== undefined) {
    giveBack()
    return { why: trial }
  }
  return { path, controllers, giveBack, sweep: () => sweepRuns(path) }
}

async function enterLeaf(path: string, leaf: string): Promise<string | undefined> {
  const began = performance.now()
  try {
    mkdirSync(leaf)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    while (isPopulated(leaf)) {
      if (performance.now() - began > LEAF_PATIENCE_MS) return `another worker is in ${leaf}`
      await sleep(50)
    }
  }
  // What we started a moment ago may fork while it is moved.
  for (let rounds = 0; rounds < 10; rounds++) {
    const left = readMembers(path)
    if (left.length === 0) return undefined
    const stranger = left.find((pid) => !isOurs(pid) && readProcess(pid) !== undefined)
    if (stranger !== undefined) return `process ${stranger} came into ${path}`
    for (const pid of left) tryWrite(join(leaf, 'cgroup.procs'), String(pid))
  }
  return `processes ${readMembers(path).join(' ')} cannot be moved to ${leaf}`
}

/** Proves that a first process comes into its group, and that the group can be removed. */
async function tryGroup(path: string): Promise<string | undefined> {
  const name = `.trial-${process.pid}`
  const group = makeGroup(path, name)
  try {
    const [file = '', ...args] = [...entryLauncher([]), '/bin/sh', '-c', 'read -r go']
    const stdio = ['pipe', 'ignore', 'ignore'] as unknown[]
    stdio[ENTRY_FD] = group.entry
    const child = spawn(file, args, { cwd: '/', env: {}, stdio: stdio as 'pipe'[] })
    const exited = once(child, 'exit')
    child.stdin?.on('error', () => undefined)
    const began = performance.now()
    while (!isPopulated(group.path) && child.exitCode === null && performance.now() - began < TRIAL_MS) await sleep(1)
    const isIn = child.pid !== undefined && readMembers(group.path).includes(child.pid)
    child.kill('SIGKILL')
    await exited
    if (!isIn) return `a process could not enter ${group.path}`
  } finally {
    closeSync(group.entry)
    await removeGroups({ pid: process.pid, mark: name, cgroupBase: path })
  }
  return undefined
}

async function sweepRuns(path: string): Promise<void> {
  // Our own begin with another id. None is ours yet.
  for (const name of groupsBelow(path).filter((each) => RUN_GROUP.test(each))) {
    const quarry = { pid: process.pid, mark: name, cgroupBase: path }
    killGroups(quarry)
    await removeGroups(quarry)
  }
}
