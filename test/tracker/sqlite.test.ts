import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { sqliteUrl } from '../../src/tracker/tracker.ts'
import { describeTracker } from './contract.ts'

function makeTop(): string {
  const top = mkdtempSync(join(tmpdir(), 'qworker-tracker-'))
  onTestFinished(() => rmSync(top, { recursive: true, force: true }))
  return top
}

function place(): string {
  return join(makeTop(), 'state', 'tracker.db')
}

describeTracker('SQLite', () => sqliteUrl(place()))
