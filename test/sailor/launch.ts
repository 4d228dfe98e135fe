import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, expect } from 'vitest'

export const PROJECT = fileURLToPath(new URL('../..', import.meta.url))
const SAILOR = join(PROJECT, 'bin/drunken-sailor')

/** A harbour is one directory and one mark in the environment, by which every process of a test is found again. */
const open: { dir: string; mark: string }[] = []

export function openHarbour() {
  const harbour = { dir: mkdtempSync(join(tmpdir(), 'sailor-')), mark: randomUUID() }
  open.push(harbour)
  return harbour
}
export type Harbour = ReturnType<typeof openHarbour>

afterEach(() => {
  const left = open.flatMap(({ mark }) => findMarked(mark))
  for (const pid of left) process.kill(pid, 'SIGKILL')
  for (const { dir } of open.splice(0)) rmSync(dir, { recursive: true, force: true })
  expect(left, 'processes left by a test').toEqual([])
})

export function launch(args: string[], harbour: Harbour, env: Record<string, string> = {}, command = SAILOR) {
  const child: ChildProcess = spawn(command, args, {
    cwd: harbour.dir,
    env: { PATH: process.env.PATH, SAILOR_MARK: harbour.mark, ...env },
  })
  const said = { stdout: '', stderr: '' }
  child.stdin!.on('error', () => {})
  child.stdout!.on('data', (data) => {
    said.stdout += data
  })
  child.stderr!.on('data', (data) => {
    said.stderr += data
  })
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  const closed = once(child, 'close')
  return { child, pid: child.pid!, said, exited, closed }
}

/** Runs to the end, streams included. */
export async function finish(args: string[], harbour = openHarbour(), env: Record<string, string> = {}) {
  const { exited, closed, said, pid } = launch(args, harbour, env)
  const [code, signal] = await exited
  await closed
  return { ...said, code, signal, pid }
}

/** A zombie has no environment any more, so it does not count. */
export function findMarked(mark: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => readProc(pid, 'environ').includes(`SAILOR_MARK=${mark}`))
}

export async function killMarked(mark: string): Promise<void> {
  await until('no marked process', () => {
    const pids = findMarked(mark)
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // Gone between the look and the shot.
      }
    }
    return pids.length === 0
  })
}

export function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}

export function readStatus(pid: number, key: string): string {
  return new RegExp(`^${key}:\\s*(.*)$`, 'm').exec(readProc(pid, 'status'))?.[1] ?? ''
}

export const hasOpen = (pid: number, fd: number) => existsSync(`/proc/${pid}/fd/${fd}`)

export async function until(what: string, condition: () => boolean, pollMs = 10): Promise<void> {
  const deadline = Date.now() + 15_000
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain for: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, pollMs))
  }
}
