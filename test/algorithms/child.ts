/** Runs a shipped algorithm as its manifest says, the way a worker would: a real process in a fresh folder. */

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parse } from 'yaml'

const ALGORITHMS = join(import.meta.dirname, '..', '..', 'algorithms')

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
  readonly files: Readonly<Record<string, string>>
  readonly seconds: number
}

export interface RunOptions {
  readonly ttr?: number
  readonly settings?: Readonly<Record<string, unknown>>
  readonly onStart?: (child: ChildProcess) => void
}

export const UUID = 'bc3a925099b9012e0f06549a20077664'

/** @param payload text goes to the program as it is, anything else as JSON */
export async function runAlgorithm(name: string, payload: unknown, options: RunOptions = {}): Promise<Ended> {
  const dir = join(ALGORITHMS, name)
  const manifest = parse(readFileSync(join(dir, 'algorithm.yaml'), 'utf8'))
  const ttr = options.ttr ?? 1
  const replaced: Record<string, string> = { dir, node: process.execPath, ttr: String(ttr), uuid: UUID, attempt: '1' }
  const [program, ...args] = (manifest.command as string[]).map((part) =>
    part.replace(/\{(\w+)\}/g, (_, key) => replaced[key] ?? ''),
  )
  const cwd = mkdtempSync(join(tmpdir(), 'qworker-algorithm-'))
  const body = typeof payload === 'string' ? payload : JSON.stringify(payload)
  writeFileSync(join(cwd, 'input.json'), body)
  if (options.settings) writeFileSync(join(cwd, '.settings.json'), JSON.stringify(options.settings), { mode: 0o600 })
  const env = {
    PATH: process.env.PATH,
    HOME: cwd,
    LANG: 'C.UTF-8',
    TZ: 'UTC',
    TMPDIR: cwd,
    QWORKER_UUID: UUID,
    ...manifest.env,
  }
  const began = performance.now()
  try {
    const child = spawn(program ?? '', args, { cwd, env })
    const ended = await watch(child, body, options)
    const files = Object.fromEntries(readdirSync(cwd).map((file) => [file, readFileSync(join(cwd, file), 'utf8')]))
    return { ...ended, files, seconds: (performance.now() - began) / 1000 }
  } finally {
    rmSync(cwd, { recursive: true, force: true })
  }
}

function watch(child: ReturnType<typeof spawn>, body: string, options: RunOptions) {
  return new Promise<Omit<Ended, 'files' | 'seconds'>>((resolve, reject) => {
    let stdout = ''
    let stderr = ''
    child.stdout?.setEncoding('utf8').on('data', (text) => {
      stdout += text
    })
    child.stderr?.setEncoding('utf8').on('data', (text) => {
      stderr += text
    })
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
    // a program may end without reading its input
    child.stdin?.on('error', () => {})
    child.stdin?.end(body)
    options.onStart?.(child)
  })
}
