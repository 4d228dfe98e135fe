/** Work packages that tests put and take. */

import { onTestFinished } from 'vitest'
import { parsePackage } from '../../src/job/package.ts'
import { openQueue, type PutOptions, type Queue } from '../../src/queue/queue.ts'

let tubes = 0

/** Into a tube of its own. */
export const newPut = (): PutOptions => ({ tube: `batch-${++tubes}`, priority: 1337, delaySeconds: 0, ttrSeconds: 60 })

/** Closed after the test. */
export async function openForTest(url: string): Promise<Queue> {
  const queue = await openQueue(url)
  onTestFinished(() => queue.close())
  return queue
}

/** Takes all that is in the tube. */
export async function takeAll(tube: string, url: string) {
  const queue = await openForTest(url)
  await queue.watch([tube])
  const packages = []
  for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) {
    packages.push(parsePackage(job.body))
    await job.delete()
  }
  return packages
}
