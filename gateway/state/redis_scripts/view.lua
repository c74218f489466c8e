return {now, seen(2, ARGV[2])}
