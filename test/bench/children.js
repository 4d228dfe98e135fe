/** Processes and folders of a benchmark: whatever ends it, none of them is left. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, closeSync, constants, mkdirSync, mkdtempSync, openSync, realpathSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'

export const PROJECT = resolve(import.meta.dirname, '..', '..')
export const PROGRAMS = join(import.meta.dirname, 'programs')
/** Of every process that is measured. NODE_EXTRA_CA_CERTS would add 70 ms to each start of Node. */
export const ENVIRONMENT = { PATH: process.env.PATH ?? '/usr/bin:/bin', LANG: 'C.UTF-8' }

const END_MS = 8_000
const START_MS = 20_000
const FILE_PROBES = 200

const running = new Set()
let base
let folders = 0
/** A row that is cut short must not go on with another process. */
let isEnding = false

/** A new folder. It stays until the end of everything: files near a tree that was just deleted are slow to make. */
export function makeFolder(name) {
  base ??= makeBase()
  const path = join(base, `${name}-${++folders}`)
  mkdirSync(path)
  return path
}

/**
 * ext4 puts a folder near the one that it is in, where the last run may have left many deleted files; the folders of one
 * that is marked as a top (chattr +T) go where the disk is emptiest. Elsewhere nothing comes of it.
 */
function makeBase() {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'qworker-bench-')))
  spawnSync('chattr', ['+T', path])
  return path
}

/** What was written so far is on the disk: nobody's syncs wait for what another one left. */
export function settleDisk() {
  if (base !== undefined) spawnSync('sync', ['-f', base])
}

/** Microseconds for a folder with two files in it: the part of the disk in what is measured. */
export function fileMicroseconds() {
  const path = makeFolder('files')
  const startedAt = performance.now()
  for (let i = 0; i < FILE_PROBES; i++) {
    mkdirSync(join(path, String(i)))
    for (const name of ['a', 'b']) closeSync(openSync(join(path, String(i), name), 'wx'))
  }
  return ((performance.now() - startedAt) / FILE_PROBES) * 1000
}

/** The path of a program in PATH, or undefined. */
export function findProgram(name) {
  for (const dir of ENVIRONMENT.PATH.split(delimiter)) {
    try {
      accessSync(join(dir, name), constants.X_OK)
      return join(dir, name)
    } catch {
      // in the next one, perhaps
    }
  }
  return undefined
}

export function startProcess(command, args, { env = ENVIRONMENT, stdio = ['ignore', 'ignore', 'inherit'], cwd } = {}) {
  if (isEnding) throw new Error('the benchmark is ending')
  const child = spawn(command, args, { env, stdio, cwd })
  running.add(child)
  child.ended = new Promise((done) => {
    child.once('exit', (code, signal) => done({ code, signal }))
    child.once('error', (error) => done({ code: null, signal: null, error }))
  })
  child.ended.then(() => running.delete(child))
  return child
}

export const hasEnded = (child) => !running.has(child)

/** Ends it, by force when it does not go. */
export async function stopProcess(child, signal = 'SIGTERM') {
  if (hasEnded(child)) return
  child.kill(signal)
  const timer = setTimeout(() => child.kill('SIGKILL'), END_MS)
  await child.ended
  clearTimeout(timer)
}

/**
 * Runs a program to its end, its stdin from a file or nothing.
 * @throws when it does not exit with 0
 */
export async function runProcess(command, args, { env, input, cwd } = {}) {
  const fd = input === undefined ? 'ignore' : openSync(input, 'r')
  const startedAt = performance.now()
  const child = startProcess(command, args, { env, cwd, stdio: [fd, 'pipe', 'pipe'] })
  if (typeof fd === 'number') closeSync(fd)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (chunk) => {
    stdout += chunk
  })
  child.stderr.on('data', (chunk) => {
    stderr += chunk
  })
  const closed = once(child, 'close').catch(() => undefined)
  const { code, signal, error } = await child.ended
  const seconds = (performance.now() - startedAt) / 1000
  await closed
  if (code === 0) return { stdout, stderr, seconds }
  const end = error?.message ?? `it ended with ${code ?? signal}`
  throw new Error(`${command} ${args.join(' ')}: ${end} ${stderr.trim().slice(-500)}`)
}

/** Starts a server that says `ready PORT`. */
export async function startServer(program, args) {
  const child = startProcess(process.execPath, [join(PROGRAMS, program), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = child.ended.then(() => {
    throw new Error(`${program} ${args.join(' ')} ended before it was ready`)
  })
  const [line] = await Promise.race([once(child.stdout, 'data'), ended])
  return { child, port: Number(String(line).split(' ')[1]) }
}

/** A port that was free a moment ago. */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms))

/** @throws when it does not hold in time, or a process that it depends on has ended */
export async function until(what, holds, { child, ms = START_MS, everyMs = 10 } = {}) {
  const deadline = performance.now() + ms
  for (;;) {
    const value = await holds()
    if (value) return value
    if (child !== undefined && hasEnded(child)) throw new Error(`a process ended before: ${what}`)
    if (performance.now() > deadline) throw new Error(`waited ${Math.round(ms / 1000)} s in vain for: ${what}`)
    await pause(everyMs)
  }
}

/** Ends all that a row has started, whether it stopped it or failed. */
export async function endProcesses() {
  await Promise.all([...running].map((child) => stopProcess(child)))
}

/** Ends every process for good, and removes all folders. */
export async function endEverything() {
  isEnding = true
  await endProcesses()
  if (base !== undefined) rmSync(base, { recursive: true, force: true, maxRetries: 5 })
}
