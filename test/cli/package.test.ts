/** What `npm pack` makes, unpacked elsewhere: with what it needs, and nothing of this checkout. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { freePort, startBroker } from '../support/broker.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'

const SOURCES = /^(\.git|node_modules|dist|coverage)(\/|$)|\.tgz$/
const PATH = process.env.PATH ?? ''
/** Run from a checkout only. */
const LEFT_OUT = /^cli\/(demo\.js|demo\/.*|finish-build\.js)$/

let dir: string
let checkout: string
let packed: string[]
let installed: string
beforeAll(() => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'qworker-package-')))
  checkout = copySources('checkout')
  symlinkSync(join(PROJECT, 'node_modules'), join(checkout, 'node_modules'))
  // Of a source that is gone, and of a user.
  mkdirSync(join(checkout, 'dist', 'old'), { recursive: true })
  for (const file of ['dist/old/gone.js', 'dist/old/gone.js.map', 'notes.txt', '.env'])
    writeFileSync(join(checkout, file), '')
  installed = join(dir, 'elsewhere')
  packed = unpack(checkout, installed)
}, 120_000)
afterAll(() => rmSync(dir, { recursive: true, force: true }))

function copySources(name: string): string {
  const copy = join(dir, name)
  for (const file of readdirSync(PROJECT)) {
    if (!SOURCES.test(file)) cpSync(join(PROJECT, file), join(copy, file), { recursive: true })
  }
  return copy
}

function run(command: string, args: string[], cwd: string) {
  const { status, stdout, stderr } = spawnSync(command, args, {
    cwd,
    env: { PATH, HOME: dir, GIT_CONFIG_NOSYSTEM: '1', npm_config_offline: 'true', npm_config_update_notifier: 'false' },
    encoding: 'utf8',
  })
  return { status, stdout, stderr }
}

/** Packs it, and installs the package with the production dependencies of the lock file; what the tarball holds. */
function unpack(source: string, target: string): string[] {
  const { status, stdout, stderr } = run('npm', ['pack', '--json', '--pack-destination', dir], source)
  expect(status, stderr).toBe(0)
  const tarball = join(dir, /"filename": "([^"]+)"/.exec(stdout)?.[1] ?? '')
  const listing = run('tar', ['-tzf', tarball], dir).stdout.trim().split('\n')
  const modules = join(target, 'node_modules')
  mkdirSync(join(modules, 'qworker'), { recursive: true })
  expect(run('tar', ['-xzf', tarball, '--strip-components=1', '-C', join(modules, 'qworker')], dir).status).toBe(0)
  linkProduction(modules)
  mkdirSync(join(modules, '.bin'))
  for (const name of ['qworker', 'qproducer', 'drunken-sailor'])
    symlinkSync(join('..', 'qworker', 'bin', name), join(modules, '.bin', name))
  return listing.map((file) => file.replace(/^package\//, ''))
}

function linkProduction(modules: string): void {
  const lock = JSON.parse(readFileSync(join(PROJECT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; devOptional?: boolean }>
  }
  for (const [path, { dev, devOptional }] of Object.entries(lock.packages)) {
    const name = /^node_modules\/((?:@[^/]+\/)?[^/]+)$/.exec(path)?.[1]
    if (name === undefined || dev || devOptional || !existsSync(join(PROJECT, path))) continue
    mkdirSync(dirname(join(modules, name)), { recursive: true })
    symlinkSync(join(PROJECT, path), join(modules, name))
  }
}

function filesBelow(folder: string): string[] {
  const entries = readdirSync(join(PROJECT, folder), { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(PROJECT.length + 1))
}

test('a package holds the programs, algorithms and rc files, and nothing that only a checkout needs', () => {
  const modules = filesBelow('src')
    .filter((file) => !file.endsWith('.d.ts'))
    .map((file) => file.replace(/^src\/(.*)\.ts$/, '$1.js'))
    .filter((file) => !LEFT_OUT.test(file))
    .map((file) => `dist/${file}`)
  const bundle = ['', '-batch', '-beanstalk', '-feed', '-spread', '-wait'].map(
    (part) => `dist/cli/qproducer${part}.cjs`,
  )
  const expected = [
    ...bundle,
    ...['LICENSE', 'README.md', 'package.json'],
    ...['bin', 'etc', 'algorithms'].flatMap(filesBelow),
    ...modules,
  ]
  expect(packed.sort()).toEqual(expected.sort())
})

test('nothing can be imported from it: its programs are its interface', () => {
  const program =
    "import('qworker').catch((error) => process.exit(error.code === 'ERR_PACKAGE_PATH_NOT_EXPORTED' ? 3 : 4))"
  expect(run('node', ['-e', program], installed).status).toBe(3)
})

test('a package tells the commit that it was made of; where none is known, only its version', (context) => {
  const { version } = JSON.parse(readFileSync(join(PROJECT, 'package.json'), 'utf8')) as { version: string }
  for (const program of ['qworker', 'qproducer', 'drunken-sailor'])
    expect(run(join(installed, 'node_modules', '.bin', program), ['--version'], dir).stdout).toBe(`${version}\n`)
  if (run('git', ['--version'], dir).status !== 0) leaveOut(context, 'the commit of a package: there is no git here')
  const git = (...args: string[]) => {
    const { status, stdout, stderr } = run('git', ['-c', 'user.name=x', '-c', 'user.email=x@x', ...args], checkout)
    expect(status, stderr).toBe(0)
    return stdout.trim()
  }
  // As sources that lie in another project's checkout: its commits are not ours.
  const outer = { cwd: dir, env: { PATH, HOME: dir } }
  spawnSync('git', ['init', '-q'], outer)
  spawnSync('git', ['-c', 'user.name=x', '-c', 'user.email=x@x', 'commit', '-q', '--allow-empty', '-m', 'x'], outer)
  const build = () => {
    expect(run('npm', ['run', '-s', 'build'], checkout)).toMatchObject({ status: 0 })
    return run('bin/qworker', ['--version'], checkout).stdout
  }
  expect(build()).toBe(`${version}\n`)
  git('init', '-q')
  git('add', '-A', '--', ':!.env', ':!notes.txt', ':!node_modules')
  git('commit', '-q', '-m', 'x')
  const commit = git('rev-parse', '--short=7', 'HEAD')
  const target = join(dir, 'with-commit')
  expect(unpack(checkout, target)).toContain('dist/commit')
  expect(run(join(target, 'node_modules', '.bin', 'qproducer'), ['-V'], dir).stdout).toBe(`${version} (${commit})\n`)
  writeFileSync(join(checkout, 'LICENSE'), 'changed')
  expect(build()).toBe(`${version} (${commit}-dirty)\n`)
})

test('without the development dependencies, as with npm ci --omit=dev, nothing is built and nothing fails', () => {
  const copy = copySources('production')
  linkProduction(join(copy, 'node_modules'))
  expect(run('npm', ['run', '-s', 'prepare'], copy)).toMatchObject({ status: 0, stdout: '' })
  expect(existsSync(join(copy, 'dist'))).toBe(false)
  const { status, stderr } = run('bin/qworker', ['--version'], copy)
  expect({ status, stderr }).toEqual({
    status: 70,
    stderr: 'qworker: it is not built, or not whole: run npm ci, or npm run build\n',
  })
})

test('from a package a job goes all its way: put, run, published, waited for', async () => {
  const broker = await startBroker()
  const results = join(dir, 'results')
  mkdirSync(results)
  const port = await freePort()
  const env = {
    PATH,
    BEANSTALK_SERVER: broker.host,
    BEANSTALK_PORT: String(broker.port),
    RESULT_BASEDIR: results,
    HTTP_PORT: String(port),
    LOG_FORMAT: 'text',
  }
  const bin = (name: string) => join(installed, 'node_modules', '.bin', name)
  const worker = spawn(bin('qworker'), ['-j', '1'], { cwd: dir, env, stdio: ['ignore', 'ignore', 'inherit'] })
  const exited = once(worker, 'exit')
  onTestFinished(async () => {
    if (worker.exitCode === null) worker.kill('SIGKILL')
    await broker.stop()
  })
  const put = (args: string[]) =>
    spawnSync(bin('qproducer'), ['--wait', '--timeout', '40', ...args], { cwd: dir, env, encoding: 'utf8' })
  const sleep = put(['-a', 'sleep', '-p', '{"seconds": 0}'])
  expect(sleep.status, sleep.stderr).toBe(0)
  expect(JSON.parse(sleep.stdout)).toMatchObject({ type: 'sleep', exit_code: 0 })
  const sailor = put(['-a', 'drunken_sailor', '-p', '{"outcome": "normal", "sleep": 0}'])
  expect(sailor.status, sailor.stderr).toBe(0)
  worker.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
  expect(run(bin('drunken-sailor'), ['--list'], dir).stdout).toContain('infinite-loop')
  expect(run(bin('qproducer'), ['--help'], dir).stdout).toContain('Examples:')
})
