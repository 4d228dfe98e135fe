import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startBroker } from '../support/broker.ts'
import { PROJECT } from '../support/installation.ts'

/** Packages, and files of `dist/`, that a program loads from its start to its end. */
async function listLoaded(
  program: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<string[]> {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-loaded-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const list = join(dir, 'list')
  writeFileSync(list, '')
  const tracer = join(PROJECT, 'test', 'cli', 'loaded.js')
  const child = spawn(process.execPath, ['--import', tracer, join(PROJECT, 'bin', program), ...args], {
    env: { PATH: process.env.PATH ?? '', LOADED: list, ...env },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const [code] = await once(child, 'close')
  expect(code).toBe(0)
  const found = readFileSync(list, 'utf8').matchAll(/\/(?:node_modules\/((?:@[^/]+\/)?[^/]+)|dist)\/(.*)$/gm)
  return [...new Set([...found].map(([, name, file = '']) => name ?? file))].sort()
}

function listPackages(loaded: readonly string[]): string[] {
  return loaded.filter((name) => !/\.c?js$/.test(name))
}

test('qproducer loads for one job no package at all', async () => {
  const broker = await startBroker()
  onTestFinished(() => broker.stop())
  const env = { BEANSTALK_SERVER: broker.host, BEANSTALK_PORT: String(broker.port), TTR: '90s' }
  const loaded = await listLoaded('qproducer', ['-a', 'sleep', '-p', '{}', '--tube', 'loaded', '--json'], env)
  expect(loaded).toEqual(['cli/qproducer-beanstalk.cjs', 'cli/qproducer.cjs'])
}, 60_000)

/** What stands in a file of the bundle: our modules, and what it requires at once. */
function readBundle(file: string): { modules: string[]; required: string[] } {
  const text = readFileSync(join(PROJECT, 'dist', 'cli', file), 'utf8')
  const found = (pattern: RegExp) => [...new Set([...text.matchAll(pattern)].map(([, name = '']) => name))].sort()
  return {
    modules: found(/^\/\/ ([^\n]*\.js)$/gm),
    required: found(/^(?:let|const) \w+ = require\("([^"]*)"\)/gm),
  }
}

test('the bundle of qproducer holds our own code alone, and for one job little of it and of Node', () => {
  const files = readdirSync(join(PROJECT, 'dist', 'cli')).filter((name) => name.endsWith('.cjs'))
  const modules = files.flatMap((file) => readBundle(file).modules)
  expect(modules).toContain('dist/batch/batch.js')
  expect(modules.filter((name) => !/^dist\/[\w/-]+\.js$/.test(name))).toEqual([])
  const plain = ['qproducer.cjs', 'qproducer-beanstalk.cjs'].map(readBundle)
  const rooms = /^dist\/(run|report|store|worker|http|tracker|broker|batch)\//
  expect(plain.flatMap((part) => part.modules.filter((name) => rooms.test(name)))).toEqual([
    'dist/report/suggestion.js',
    'dist/run/small-file.js',
  ])
  const required = new Set(plain.flatMap((part) => part.required))
  expect([...required].sort()).toEqual(['./qproducer.cjs', 'node:fs', 'node:net', 'node:path', 'node:util'])
})

test('qproducer loads a YAML parser for an rc file', async () => {
  const broker = await startBroker()
  const dir = mkdtempSync(join(tmpdir(), 'qworker-rc-'))
  onTestFinished(async () => {
    await broker.stop()
    rmSync(dir, { recursive: true })
  })
  const rc = join(dir, 'rc')
  writeFileSync(rc, `BEANSTALK_SERVER: ${broker.host}\nBEANSTALK_PORT: ${broker.port}\nTUBE: loaded\n`)
  const loaded = await listLoaded('qproducer', ['-a', 'sleep', '-c', rc])
  expect(listPackages(loaded)).toEqual(['yaml'])
}, 60_000)

test.each([
  ['qproducer', '--help'],
  ['qproducer', '--version'],
  ['qworker', '--help'],
  ['qworker', '--version'],
  ['qworker', 'init', '--help'],
])(
  '%s %s loads commander alone',
  async (program, ...args) => {
    const loaded = await listLoaded(program, args)
    expect(listPackages(loaded)).toEqual(['commander'])
  },
  60_000,
)
