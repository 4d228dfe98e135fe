import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { findInvocation, quote } from '../../src/cli/invocation.ts'

/** A package with its programs, and a folder for links to them. */
function installed(...links: string[]) {
  const top = realpathSync(mkdtempSync(join(tmpdir(), 'qworker-invocation-')))
  onTestFinished(() => rmSync(top, { recursive: true }))
  const bin = join(top, 'package', 'bin')
  mkdirSync(bin, { recursive: true })
  for (const name of ['qworker', 'qproducer']) writeFileSync(join(bin, name), '')
  const linkFolder = (name: string) => {
    const folder = join(top, name)
    mkdirSync(folder, { recursive: true })
    for (const link of ['qworker', 'qproducer']) symlinkSync(join(bin, link), join(folder, link))
    return folder
  }
  for (const link of links) linkFolder(link)
  return { top, bin }
}

test('who has our programs in PATH is told their names alone', () => {
  const { top, bin } = installed('usr/bin')
  const path = `/nowhere:${join(top, 'usr/bin')}`
  expect(findInvocation(join(top, 'usr/bin/qworker'), path, bin)).toEqual({
    qworker: 'qworker',
    qproducer: 'qproducer',
  })
  // Called by path all the same.
  expect(findInvocation(join(bin, 'qworker'), path, bin)).toEqual({ qworker: 'qworker', qproducer: 'qproducer' })
})

test('another program of that name in PATH is not taken for ours', () => {
  const { top, bin } = installed('usr/bin')
  const other = installed()
  expect(findInvocation(join(bin, 'qworker'), `${other.bin}:${join(top, 'usr/bin')}`, bin)).toEqual({
    qworker: join(bin, 'qworker'),
    qproducer: join(bin, 'qproducer'),
  })
})

test('in a checkout, and in a project that has it as a dependency, the commands have absolute paths', () => {
  const { top, bin } = installed('site/node_modules/.bin')
  expect(findInvocation(join(bin, 'qworker'), '/usr/bin', bin).qproducer).toBe(join(bin, 'qproducer'))
  const local = join(top, 'site/node_modules/.bin')
  // npm sets that folder before PATH, for what it runs.
  expect(findInvocation(join(local, 'qworker'), `${local}:/usr/bin`, bin)).toEqual({
    qworker: join(local, 'qworker'),
    qproducer: join(local, 'qproducer'),
  })
})

test('a link of another name says nothing about the other program', () => {
  const { top, bin } = installed()
  symlinkSync(join(bin, 'qworker'), join(top, 'qw'))
  expect(findInvocation(join(top, 'qw'), '', bin)).toEqual({
    qworker: join(bin, 'qworker'),
    qproducer: join(bin, 'qproducer'),
  })
  const folder = join(top, 'half')
  mkdirSync(folder)
  symlinkSync(join(bin, 'qworker'), join(folder, 'qworker'))
  expect(findInvocation(join(folder, 'qworker'), '', bin)).toEqual({
    qworker: join(folder, 'qworker'),
    qproducer: join(bin, 'qproducer'),
  })
})

test('npx is told what it was given; where it did not note that, the path is', () => {
  const { top, bin } = installed('.npm/_npx/1f2e/node_modules/.bin')
  const home = join(top, '.npm/_npx/1f2e')
  const called = join(home, 'node_modules/.bin/qworker')
  const path = `${join(home, 'node_modules/.bin')}:/usr/bin`
  expect(findInvocation(called, path, bin).qworker).toBe(called)
  for (const [note, qproducer] of [
    ['{"_npx": {"packages": ["qworker@0.1"]}}', 'npx -p qworker@0.1 qproducer'],
    ['{"_npx": {"packages": ["/home/a b/qworker.tgz"]}}', "npx -p '/home/a b/qworker.tgz' qproducer"],
    ['{"_npx": {"packages": ["./qworker.tgz"]}}', join(home, 'node_modules/.bin/qproducer')],
    ['{"_npx": {"packages": ["file:../qworker"]}}', join(home, 'node_modules/.bin/qproducer')],
    ['{"_npx": {"packages": ["qworker", "other"]}}', join(home, 'node_modules/.bin/qproducer')],
    ['null', join(home, 'node_modules/.bin/qproducer')],
  ] as const) {
    writeFileSync(join(home, 'package.json'), note)
    expect(findInvocation(called, path, bin).qproducer).toBe(qproducer)
  }
})

test('words are quoted only where a shell would read them otherwise', () => {
  expect(['/a/b-1.0_c', 'a b', "it's", '~', ''].map(quote)).toEqual(['/a/b-1.0_c', "'a b'", `'it'\\''s'`, "'~'", "''"])
})
