import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 30_000,
    // Most tests wait for processes: more files at a time than processors, but few enough that TTRs of a second hold.
    maxWorkers: 3,
  },
})
