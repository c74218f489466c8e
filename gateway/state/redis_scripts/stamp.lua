return {now, whole((generation(KEYS[2])))}
