import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { defineConfig } from 'vitest/config'
import type { TestModule } from 'vitest/node'

/** Files whose tests are about jobs in a broker: on beanstalkd they must do what they do on the embedded one. */
const WITH_BROKER =
  /^(producer|batch|queue|road)\/|^cli\/(qproducer|qworker)|^worker\/(broker-loss|crash|frozen|killed|lifetime|poison|servers|signals|worker)\.|^sailor\/torture-eyes/
const withBroker = readdirSync('test', { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.ts') && WITH_BROKER.test(file))
  .map((file) => `test/${file}`)
// Algorithms of tests are small shell scripts, whatever PATH the suite was started with.
process.env.PATH = [process.env.PATH, '/usr/bin', '/bin'].join(':')
const hasBeanstalkd = spawnSync('beanstalkd', ['-v']).status === 0

const reporter = {
  onTestRunEnd(modules: readonly TestModule[]) {
    if (hasBeanstalkd) return
    const count = modules.reduce((sum, { moduleId, children }) => {
      if (withBroker.some((file) => moduleId.endsWith(`/${file}`))) return sum + [...children.allTests()].length
      return moduleId.includes('/test/broker/') ? sum + [...children.allTests('skipped')].length : sum
    }, 0)
    if (count > 0)
      console.log(`${count} tests were left out, for which beanstalkd is missing: apt-get install beanstalkd`)
  },
}

export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 30_000,
    // Most tests wait for processes: more files at a time than processors, but few enough that TTRs of a second hold.
    maxWorkers: 3,
    // Once more where real processes, sockets and disks met something on a busy machine; the report tells which (retry x1).
    retry: 1,
    reporters: ['default', reporter],
    projects: [
      { extends: true, test: { name: 'embedded', include: ['test/**/*.test.ts'], env: { TEST_BROKER: 'embedded' } } },
      ...(hasBeanstalkd
        ? [
            {
              extends: true as const,
              test: { name: 'beanstalkd', include: withBroker, env: { TEST_BROKER: 'beanstalkd' } },
            },
          ]
        : []),
    ],
  },
})
